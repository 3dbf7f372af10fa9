"""Open image files, the only module that does: what is rejected, and how every kind of pixel becomes 8-bit RGB.

Only formats with a decoder in Pillow itself are tried, and those of ``optional_formats``, so that a file's content
cannot choose another program to parse it (Pillow would hand PostScript to Ghostscript). The reasons of
``ImageRejected`` given here:

==================  ====================================================================================
empty-file          zero bytes
not-an-image        none of the formats, whatever the file is called
decoder-missing     a format whose decoder is not installed
truncated           begins like an image and cannot be read to its end
corrupt             the pixels cannot be decoded
unsupported-pixels  decodes, but to numbers with no defined black and white (floats, 32-bit integers, L*a*b*)
too-small           a side below ``min_side``
extreme-aspect      one side more than ``max_aspect`` times as long as the other
too-large           more than ``max_pixels`` or ``max_bytes``: a mistake, or a decompression bomb
==================  ====================================================================================
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from components.errors import ImageRejected
from components.image.optional_formats import HEIF, JXL, optional_format, prepare
from components.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_ALL_FORMATS = ", ".join((*FORMATS, HEIF.name, JXL.name))

# How files of these formats begin: distinguishes a truncated image from what is no image.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")

# Where ``decode`` leaves the share of an image's pixels that were not opaque, if any could be.
TRANSPARENT = "transparent"

# EXIF 2.32, tag 0x0112: how to transpose the stored rows so that the image is upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# Formats whose decoders turn the image themselves; JPEG XL may have an EXIF orientation besides, which does not count.
_TURNED = ("TIFF", HEIF.name, JXL.name)


class ImageLimits(Settings):
    """Which image sizes are accepted."""

    min_side: int = Field(16, ge=1, le=100_000, description="minimum length of the shorter side, in pixels")
    # Pillow warns above its own limit and fails above twice that; staying below keeps one rule.
    max_pixels: int = Field(67_108_864, ge=1, le=89_478_485, description="maximum number of pixels, width times height")
    max_aspect: float | None = Field(
        10.0, ge=1, le=10_000, description="maximum aspect ratio, longer side over shorter side; null accepts all"
    )
    max_bytes: int = Field(
        268_435_456, ge=1, le=1 << 34, description="maximum size of an image file, in bytes; larger ones are not read"
    )


class ImageFacts(NamedTuple):
    """What an image's header says.

    Attributes:
        width: Pixels, upright.
        height: Pixels, upright.
        format: The file's format, as Pillow calls it.
        alpha: Whether its pixels may be transparent.
    """

    width: int
    height: int
    format: str
    alpha: bool = False


def read_header(data: bytes) -> ImageFacts:
    """Read an image's header, without decoding its pixels.

    Raises:
        ImageRejected: ``empty-file``, ``not-an-image``, ``truncated``, ``corrupt``, or ``too-large`` by Pillow's limit.
    """
    return _facts(_open(data))


def check_limits(facts: ImageFacts, limits: ImageLimits) -> None:
    """Check an image's size against the limits.

    Raises:
        ImageRejected: ``too-small``, ``extreme-aspect`` or ``too-large``.
    """
    size = f"{facts.width}×{facts.height} px"
    if min(facts.width, facts.height) < limits.min_side:
        raise ImageRejected("too-small", f"{size}; each side must have at least {limits.min_side} px (min_side)")
    aspect = max(facts.width, facts.height) / min(facts.width, facts.height)
    if limits.max_aspect is not None and aspect > limits.max_aspect:
        detail = f"{size}, {aspect:.3g}:1; at most {limits.max_aspect:g}:1 is accepted (max_aspect)"
        raise ImageRejected("extreme-aspect", detail)
    if facts.width * facts.height > limits.max_pixels:
        raise ImageRejected("too-large", f"{size}; at most {limits.max_pixels} pixels are accepted (max_pixels)")


def inspect(data: bytes, limits: ImageLimits) -> ImageFacts:
    """Read an image's header and check its size against the limits; the pixels are not decoded.

    Raises:
        ImageRejected: As ``read_header`` and ``check_limits`` do.
    """
    facts = read_header(data)
    check_limits(facts, limits)
    return facts


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode an image to 8-bit RGB, upright.

    It has the size that ``inspect`` returns, unless a PNG has its orientation only behind its pixels.

    Transparent images are put on white, and ``info[TRANSPARENT]`` says which share of their pixels was not opaque;
    16 bits are scaled to 8, not clipped; CMYK is converted; an animation gives its first frame. Embedded colour
    profiles are not applied.

    Raises:
        ImageRejected: With any of this module's reasons.
    """
    inspect(data, limits)
    image = _open(data)  # again, since Pillow caches the metadata that it has read
    try:
        image.load()
        orientation = _orientation(image)
        rgb = _rgb(image)
    except Exception as error:  # as in _open
        raise _rejection(error, data, opened=True) from None
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageRejected("empty-file", "0 bytes; copy the file again")
    format = optional_format(data)
    try:
        if format is not None:
            prepare(format, data)
        return Image.open(io.BytesIO(data), formats=FORMATS if format is None else (format.name,))
    except Exception as error:  # on hostile bytes Pillow's parsers raise nearly anything
        raise _rejection(error, data, opened=False) from None


def _rejection(error: Exception, data: bytes, *, opened: bool) -> Exception:
    """Return the rejection that a decoder's error means; an error that is not the image's fault is returned."""
    if isinstance(error, ImageRejected | MemoryError):
        return error
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageRejected("too-large", message)
    if not opened and not _begins_like_an_image(data):
        return ImageRejected("not-an-image", f"begins with {data[:12]!r}; expected one of {_ALL_FORMATS}")
    if not opened or "truncated" in message.lower():
        return ImageRejected("truncated", f"{len(data)} bytes do not hold the whole image ({message})")
    return ImageRejected("corrupt", message)


def _begins_like_an_image(data: bytes) -> bool:
    is_avif = data[4:8] == b"ftyp" and b"avif" in data[8:64]
    return data.startswith(_BEGINNINGS) or is_avif or optional_format(data) is not None


def _facts(image: Image.Image) -> ImageFacts:
    width, height = image.size
    if _orientation(image) in _SIDEWAYS:
        width, height = height, width
    return ImageFacts(width, height, image.format or "unknown", _has_alpha(image))


def _has_alpha(image: Image.Image) -> bool:
    try:
        return bool(image.has_transparency_data)
    except AssertionError:  # a broken palette: decoding it says more
        return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied; 1, upright, if the metadata cannot be read."""
    if image.format in _TURNED:
        return 1
    try:
        # PNG's own getexif would decode the pixels to search for metadata behind them; the base class's does not.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # broken metadata are no reason to lose a good image
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("I", "F", "LAB"):
        raise ImageRejected(
            "unsupported-pixels",
            f"mode {image.mode} has no defined black and white; convert to 8- or 16-bit gray or RGB",
        )
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Return an image with a white ground, and in its ``info`` the share of its pixels that are not opaque."""
    layer = image.convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    rgb.info[TRANSPARENT] = 1 - layer.getchannel("A").histogram()[255] / (layer.width * layer.height)
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits, 65535 to 255, keeping the one transparent value that a PNG may have."""
    values = np.asarray(image).astype(np.uint32)  # [H, W]
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray
