"""The one place that opens pictures: what is refused, and how every kind of pixel becomes 8-bit RGB.

Only formats with a decoder of their own are tried, so that a file's content cannot choose a stranger parser
(Pillow would hand PostScript to Ghostscript). The reasons of ``ImageRejected`` given here:

==================  ====================================================================================
empty-file          zero bytes
not-an-image        none of the formats, whatever the file is called
truncated           begins like an image and cannot be read to its end
corrupt             the pixels cannot be decoded
unsupported-pixels  decodes, but to numbers with no known black and white (floats, 32-bit integers, L*a*b*)
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
from components.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# How files of these formats begin: tells a cut-off image from something that never was one.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")

# EXIF 2.32, tag 0x0112: what to do with the stored rows so that the picture stands upright.
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


class ImageLimits(Settings):
    """Which sizes of image are taken."""

    min_side: int = Field(16, ge=1, description="shortest side an image may have, in pixels")
    # Pillow warns above its own bound and refuses above twice that; staying below keeps one rule.
    max_pixels: int = Field(
        67_108_864, ge=1, le=89_478_485, description="most pixels an image may have, width times height"
    )
    max_aspect: float | None = Field(
        10.0, ge=1, le=10_000, description="longest an image may be, as longer side over shorter side; null takes all"
    )
    max_bytes: int = Field(268_435_456, ge=1, description="largest image file that is read, in bytes")


class ImageFacts(NamedTuple):
    """What an image's header says; width and height in pixels, upright."""

    width: int
    height: int
    format: str


def header(data: bytes) -> ImageFacts:
    """Read an image's header, without decoding its pixels.

    Raises:
        ImageRejected: ``empty-file``, ``not-an-image``, ``truncated``, ``corrupt``, or ``too-large`` by Pillow's bound.
    """
    return _facts(_open(data))


def check(facts: ImageFacts, limits: ImageLimits) -> None:
    """Hold an image's size against the limits.

    Raises:
        ImageRejected: ``too-small``, ``extreme-aspect`` or ``too-large``.
    """
    size = f"{facts.width}×{facts.height} px"
    if min(facts.width, facts.height) < limits.min_side:
        raise ImageRejected("too-small", f"{size}; each side must have at least {limits.min_side} px (min_side)")
    aspect = max(facts.width, facts.height) / min(facts.width, facts.height)
    if limits.max_aspect is not None and aspect > limits.max_aspect:
        said = f"{size}, {aspect:.3g}:1; at most {limits.max_aspect:g}:1 is taken (max_aspect)"
        raise ImageRejected("extreme-aspect", said)
    if facts.width * facts.height > limits.max_pixels:
        raise ImageRejected("too-large", f"{size}; at most {limits.max_pixels} pixels are decoded (max_pixels)")


def inspect(data: bytes, limits: ImageLimits) -> ImageFacts:
    """Read an image's header and hold its size against the limits; the pixels are not decoded.

    Raises:
        ImageRejected: As ``header`` and ``check`` do.
    """
    facts = header(data)
    check(facts, limits)
    return facts


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode an image to 8-bit RGB, upright.

    It has the size that ``inspect`` tells, unless a PNG says only behind its pixels that it lies on its side.

    Transparency is laid on white; 16 bits are scaled to 8, not clipped; CMYK is converted; of an animation the first
    frame is taken. Embedded colour profiles are not applied.

    Raises:
        ImageRejected: With any of this module's reasons.
    """
    inspect(data, limits)
    image = _open(data)  # anew, since Pillow keeps the metadata that it has looked up
    try:
        image.load()
        orientation = _orientation(image)
        rgb = _rgb(image)
    except Exception as error:  # as in _open
        raise _refusal(error, data, opened=True) from None
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageRejected("empty-file", "0 bytes; copy the file again")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # on hostile bytes Pillow's parsers raise nearly anything
        raise _refusal(error, data, opened=False) from None


def _refusal(error: Exception, data: bytes, *, opened: bool) -> Exception:
    """Say what a decoder's error means for the image; an error that is not the image's fault comes back unchanged."""
    if isinstance(error, ImageRejected | MemoryError):
        return error
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageRejected("too-large", said)
    if not opened and not data.startswith(_BEGINNINGS):
        return ImageRejected("not-an-image", f"begins with {data[:12]!r}; expected one of {', '.join(FORMATS)}")
    if not opened or "truncated" in said.lower():
        return ImageRejected("truncated", f"{len(data)} bytes do not hold the whole image ({said})")
    return ImageRejected("corrupt", said)


def _facts(image: Image.Image) -> ImageFacts:
    width, height = image.size
    if _orientation(image) in _SIDEWAYS:
        width, height = height, width
    return ImageFacts(width, height, image.format or "unknown")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied; metadata that cannot be read count as upright."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        # PNG's own getexif would decode the pixels to look for metadata behind them; the base class's does not.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # metadata are hostile too, and no reason to lose a good picture
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("I", "F", "LAB"):
        raise ImageRejected(
            "unsupported-pixels", f"mode {image.mode} has no known black and white; convert to 8- or 16-bit gray or RGB"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits, 65535 to 255, keeping the one transparent value that a PNG may name."""
    values = np.asarray(image).astype(np.uint32)  # [H, W]
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray
