"""Contact sheets: images of the source, small enough for a page, or why one cannot be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image, ImageEnhance

from components.clean.tally import Shown
from components.digests import sha256
from components.errors import DarkroomError, DataError, ImageRejected
from components.html.formatting import number, percent
from components.html.tiles import Tile, tile
from components.image.decoding import ImageLimits, decode
from components.image.fit import BadFit, Fit
from components.image.framing import Box
from components.image.sources import Source

# Few at a time: an image may take some hundred megabytes while it is decoded.
READERS = 2
QUALITY = 80
# How bright is what is cropped away.
_OUTSIDE = 0.3


class Thumbnail(NamedTuple):
    """One image of a contact sheet, scaled down.

    Attributes:
        name: Its name in the source.
        text: Its caption, or why it was rejected.
        tile: The image, or None if it cannot be shown.
        problem: Why it cannot be shown.
    """

    name: str
    text: str
    tile: Tile | None
    problem: str = ""


Sheet = list[Thumbnail]
# Opens what holds the images; raises DataError if it is gone.
OpenImages = Callable[[], Source]


def read_worst_fits(open_images: OpenImages, worst: Sequence[BadFit], longest: int) -> Sheet:
    """Read the images that fit their bucket worst; what is cropped away is shown dark.

    Args:
        open_images: Opens what holds the images.
        worst: The images.
        longest: Longest side of an image on the page, in pixels.
    """
    try:
        images = open_images()
    except DataError as error:
        return [Thumbnail(bad.name, _loss(bad.fit), None, str(error)) for bad in worst]

    def read(bad: BadFit) -> Thumbnail:
        def framed(image: Image.Image) -> Image.Image:
            return _framed(image, bad.fit.crop, longest)

        return _read(images, bad.name, bad.sha256, _loss(bad.fit), longest, framed)

    with ThreadPoolExecutor(READERS, thread_name_prefix="sheets") as pool:
        return list(pool.map(read, worst))


def _loss(fit: Fit) -> str:
    parts = [f"{percent(fit.cropped_away)} cropped away"] if fit.cropped_away >= 0.005 else []
    parts += [f"enlarged {number(fit.enlargement)} times"] if fit.enlargement > 1 else []
    return ", ".join(parts)


def _framed(image: Image.Image, crop: Box, longest: int) -> Image.Image:
    """Return an image at its size on the page, dark outside its crop."""
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    across, down = small.width / image.width, small.height / image.height
    left, top, width, height = crop
    edges = round(left * across), round(top * down), round((left + width) * across), round((top + height) * down)
    shaded = ImageEnhance.Brightness(small).enhance(_OUTSIDE)
    shaded.paste(small.crop(edges), edges[:2])
    return shaded


def read_sheets(open_images: OpenImages, chosen: Sequence[Shown], longest: int) -> list[Sheet]:
    """Read the images of some contact sheets; one that cannot be read or decoded has a problem in its place.

    Args:
        open_images: Opens what holds the images.
        chosen: The images of each sheet.
        longest: Longest side of an image on the page, in pixels.
    """
    try:
        images = open_images()
    except DataError as error:
        return [[Thumbnail(name, text, None, str(error)) for _, name, _, text in sheet.chosen] for sheet in chosen]

    def read(image: tuple[str, str, str, str]) -> Thumbnail:
        _, name, digest, text = image
        return _read(images, name, digest, text, longest)

    with ThreadPoolExecutor(READERS, thread_name_prefix="sheets") as pool:
        return [list(pool.map(read, sheet.chosen)) for sheet in chosen]


def _read(
    source: Source,
    name: str,
    digest: str,
    text: str,
    longest: int,
    change: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> Thumbnail:
    limits = ImageLimits(min_side=1, max_aspect=None)
    try:
        # A file too large for ingest is not read for the report, either.
        data = source.read(name, 0, limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            raise ImageRejected("too-large", f"more than {limits.max_bytes} bytes")
        if digest and sha256(data) != digest:
            raise ImageRejected("changed", "it is not the file that was captioned")
        return Thumbnail(name, text, tile(change(decode(data, limits)), longest, QUALITY))
    except ImageRejected as rejection:
        return Thumbnail(name, text, None, rejection.reason)
    except DarkroomError as error:
        return Thumbnail(name, text, None, str(error))
