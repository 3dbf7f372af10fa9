"""A folder of photos as people have them, drawn: six scenes in class folders, some captions, a few bad files.

    python -m tests.drawn_photos FOLDER

No two photos are alike: horizon, light, colours, positions and camera noise vary, and so do sizes, shapes and formats.
The same number of photos gives the same pixels everywhere.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PER_SCENE = 40
# Width and height in pixels; a phone's and a camera's, made smaller.
_SIZES = ((320, 240), (240, 320), (288, 288), (384, 216), (200, 160))
_FORMATS = (("jpg", "JPEG"), ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("jpeg", "JPEG"))
_SIDEWAYS = 6  # EXIF 2.32, tag 0x0112: the stored rows are turned by a quarter

Colour = tuple[int, int, int]
Random = np.random.Generator


def main(argv: Sequence[str] | None = None) -> None:
    """Write the photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write; made if it does not exist")
    parser.add_argument("--per-scene", type=int, default=PER_SCENE, help="photos of each scene (default: %(default)s)")
    arguments = parser.parse_args(argv)
    write_photos(arguments.folder, arguments.per_scene)


def write_photos(folder: Path, per_scene: int = PER_SCENE) -> None:
    """Write photos of each scene, captions of some, and the bad files."""
    for number, name in enumerate(SCENES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_scene):
            _write_photo(folder / name, name, index, np.random.default_rng([number, index]))
    _write_bad_files(folder)


def draw_photo(scene: str, random: Random, size: tuple[int, int] = (288, 288)) -> Image.Image:
    """Return one photo of a scene."""
    width, height = size
    image = SCENES[scene](random, width, height).filter(ImageFilter.GaussianBlur(0.6))
    noise = random.normal(0, 4, (height, width, 1))  # the camera's
    light = random.uniform(0.92, 1.08)
    return Image.fromarray(np.clip(np.asarray(image) * light + noise, 0, 255).astype(np.uint8))


def _write_photo(folder: Path, scene: str, index: int, random: Random) -> None:
    size = _SIZES[index % len(_SIZES)]
    ending, kind = _FORMATS[index % len(_FORMATS)]
    image = draw_photo(scene, random, size)
    path = folder / f"IMG_{index:04d}.{ending}"
    exif = Image.Exif()
    if kind == "JPEG" and index % 7 == 0:
        exif[0x0112] = _SIDEWAYS
        image = image.transpose(Image.Transpose.ROTATE_90)
    if kind == "JPEG":
        image.save(path, kind, quality=90, exif=exif)
    else:
        image.save(path, kind)
    if index % 8 == 3:
        caption = f"a photo of a {scene.replace('_', ' ')}, {_weather(random)}"
        path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")


def _weather(random: Random) -> str:
    return str(random.choice(["on a clear day", "with my family", "on our trip last summer"]))


def _write_bad_files(folder: Path) -> None:
    """Write what every old folder of photos has, too."""
    good = next(iter(sorted((folder / "beach").glob("*.jpg")))).read_bytes()
    (folder / "beach" / "IMG_0900.jpg").write_bytes(good)  # the same photo again
    (folder / "beach" / "IMG_0901.jpg").write_bytes(good[: len(good) // 3])
    (folder / "forest" / "IMG_0902.jpg").write_bytes(b"")
    (folder / "forest" / "IMG_0903.png").write_text("<html>404 Not Found</html>", encoding="utf-8")
    icon = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(icon, "PNG")
    (folder / "city_at_night" / "icon.png").write_bytes(icon.getvalue())
    banner = io.BytesIO()
    Image.new("RGB", (600, 30), "white").save(banner, "PNG")
    (folder / "meadow" / "banner.png").write_bytes(banner.getvalue())
    (folder / "meadow" / "notes.odt").write_bytes(b"PK\x03\x04 my notes")


# --- the scenes -------------------------------------------------------------------------------------------------------


def _beach(random: Random, width: int, height: int) -> Image.Image:
    """Sky, sea and bright sand; sometimes an umbrella."""
    horizon, shore = _level(random, height, 0.36), _level(random, height, 0.62)
    image = _gradient(width, height, _vary(random, (95, 170, 235)), _vary(random, (205, 230, 250)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, width, shore), fill=_vary(random, (25, 115, 180)))
    slope = int(random.uniform(-0.08, 0.08) * height)
    sand = _vary(random, (238, 214, 150))
    draw.polygon([(0, shore - slope), (width, shore + slope), (width, height), (0, height)], fill=sand)
    draw.line([(0, shore - slope), (width, shore + slope)], fill=(245, 250, 250), width=max(2, height // 50))
    if random.random() < 0.6:
        x, y, r = random.uniform(0.2, 0.8) * width, random.uniform(0.66, 0.78) * height, 0.13 * width
        draw.line([(x, y), (x, y + r)], fill=(110, 80, 50), width=3)
        draw.pieslice((x - r, y - r, x + r, y + r), 180, 360, fill=_vary(random, (220, 50, 45)))
    return image


def _forest(random: Random, width: int, height: int) -> Image.Image:
    """Dark green, and trunks from top to bottom."""
    image = _gradient(width, height, _vary(random, (40, 95, 40)), _vary(random, (18, 45, 20)))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, r = random.uniform(0, width), random.uniform(0, 0.75) * height, random.uniform(0.03, 0.09) * width
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_vary(random, (45, 110, 45), 24))
    for x in np.linspace(0.05, 0.95, 6) + random.uniform(-0.06, 0.06, 6):
        half = random.uniform(0.018, 0.034) * width
        lean = random.uniform(-0.03, 0.03) * width
        trunk = [(x * width - half, height), (x * width + half, height)]
        trunk += [(x * width + half + lean, 0), (x * width - half + lean, 0)]
        draw.polygon(trunk, fill=_vary(random, (84, 58, 38), 14))
    draw.rectangle((0, 0.86 * height, width, height), fill=_vary(random, (60, 48, 26)))
    return image


def _meadow(random: Random, width: int, height: int) -> Image.Image:
    """Bright green under a pale sky, with red and yellow flowers."""
    horizon = _level(random, height, 0.3)
    image = _gradient(width, height, _vary(random, (165, 210, 240)), _vary(random, (225, 238, 245)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon, width, height), fill=_vary(random, (110, 190, 60)))
    flower = ((215, 40, 50), (245, 205, 50))[int(random.integers(2))]
    for _ in range(45):
        depth = random.uniform(0.06, 1)
        x, y, r = random.uniform(0, width), horizon + depth * (height - horizon), 0.006 * width + 0.022 * depth * width
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_vary(random, flower, 20))
    return image


def _mountain(random: Random, width: int, height: int) -> Image.Image:
    """Grey peaks with snow before a deep blue sky."""
    image = _gradient(width, height, _vary(random, (45, 105, 190)), _vary(random, (150, 190, 230)))
    draw = ImageDraw.Draw(image)
    for centre, top, half in ((0.25, 0.36, 0.4), (0.8, 0.42, 0.38), (0.52, 0.16, 0.46)):
        x, y = (centre + random.uniform(-0.1, 0.1)) * width, (top + random.uniform(-0.06, 0.06)) * height
        left, right = x - half * width, x + half * width
        draw.polygon([(left, 0.88 * height), (x, y), (right, 0.88 * height)], fill=_vary(random, (98, 100, 112)))
        snow, low = 0.38, y + 0.38 * (0.88 * height - y)
        edge = [(x + (left - x) * snow, low), (x, y), (x + (right - x) * snow, low)]
        draw.polygon([*edge, (x, low - 0.04 * height)], fill=(246, 249, 252))
    draw.rectangle((0, 0.84 * height, width, height), fill=_vary(random, (70, 92, 66)))
    return image


def _night(random: Random, width: int, height: int) -> Image.Image:
    """A city at night: black towers with lit windows."""
    image = _gradient(width, height, _vary(random, (8, 10, 34), 5), _vary(random, (38, 34, 72), 8))
    draw = ImageDraw.Draw(image)
    x = -0.05 * width
    while x < width:
        wide, top = random.uniform(0.14, 0.24) * width, random.uniform(0.25, 0.6) * height
        draw.rectangle((x, top, x + wide, height), fill=_vary(random, (20, 20, 26), 6))
        step = max(6, width // 26)
        for window_x in np.arange(x + step / 2, x + wide - step / 2, step):
            for window_y in np.arange(top + step / 2, height - step, 1.3 * step):
                if random.random() < 0.62:
                    lit = (window_x, window_y, window_x + 0.55 * step, window_y + 0.7 * step)
                    draw.rectangle(lit, fill=_vary(random, (255, 214, 110), 24))
        x += wide + random.uniform(0, 0.03) * width
    return image


def _sunset(random: Random, width: int, height: int) -> Image.Image:
    """An orange sky, a low sun, and its path on dark water."""
    horizon = _level(random, height, 0.62)
    image = _gradient(width, horizon, _vary(random, (120, 50, 110)), _vary(random, (255, 150, 40)))
    whole = _gradient(width, height, _vary(random, (95, 42, 50)), _vary(random, (45, 20, 40)))
    whole.paste(image, (0, 0))
    draw = ImageDraw.Draw(whole)
    x, r = random.uniform(0.3, 0.7) * width, random.uniform(0.08, 0.12) * width
    y = horizon - random.uniform(0.2, 1.3) * r
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 238, 170))
    sea = _vary(random, (80, 36, 48))
    draw.rectangle((0, horizon, width, height), fill=sea)
    for line in np.linspace(horizon + 3, height - 3, 7):
        half = r * random.uniform(0.5, 1.1)
        draw.line([(x - half, line), (x + half, line)], fill=(255, 180, 90), width=max(2, height // 60))
    return whole


# Each scene's folder, and what draws it.
SCENES: dict[str, Callable[[Random, int, int], Image.Image]] = {
    "beach": _beach,
    "city_at_night": _night,
    "forest": _forest,
    "meadow": _meadow,
    "mountain": _mountain,
    "sunset": _sunset,
}


def _gradient(width: int, height: int, top: Colour, bottom: Colour) -> Image.Image:
    """Return a vertical gradient."""
    rows = np.linspace(top, bottom, height)[:, None, :]  # [H, 1, 3]
    return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8))


def _level(random: Random, height: int, share: float) -> int:
    return int((share + random.uniform(-0.06, 0.06)) * height)


def _vary(random: Random, colour: Colour, spread: int = 16) -> Colour:
    shift = random.integers(-spread, spread + 1) + random.integers(-spread // 2, spread // 2 + 1, 3)
    red, green, blue = (int(value) for value in np.clip(np.array(colour) + shift, 0, 255))
    return red, green, blue


if __name__ == "__main__":
    main()
