"""Formats that Pillow reads only with a decoder that is installed besides: HEIC, as phones write it, and JPEG XL.

A decoder is loaded when the first image needs it. Which one that is follows from how the file begins, so that a file's
content can choose among these two and no other program.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import NamedTuple

from components.errors import ImageRejected

DECODER_MISSING = "decoder-missing"
# No setting allows more (``ImageLimits.max_pixels``).
MOST_PIXELS = 89_478_485

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_COMMON_BRANDS = (b"mif1", b"msf1")  # of HEIC and AVIF
_JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_JXL_CODESTREAM = b"\xff\x0a"
# Width to height, by the number in the header; 0 means that the width is written out.
_JXL_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class OptionalFormat(NamedTuple):
    """A format with a decoder of its own.

    Attributes:
        name: As Pillow calls it.
        modules: The modules that can decode it; the first that is installed is used.
        package: What to install.
    """

    name: str
    modules: tuple[str, ...]
    package: str


HEIF = OptionalFormat("HEIF", ("pillow_heif", "pi_heif"), "pillow-heif")
JXL = OptionalFormat("JXL", ("pillow_jxl",), "pillow-jxl-plugin")


def optional_format(data: bytes) -> OptionalFormat | None:
    """Return the optional format that a file begins like, or None."""
    if data[4:8] == b"ftyp":
        others = data[16 : min(256, int.from_bytes(data[:4], "big"))]
        is_heif = data[8:12] in _HEIF_BRANDS or (data[8:12] in _COMMON_BRANDS and b"avif" not in others)
        return HEIF if is_heif else None
    return JXL if data.startswith((_JXL_CONTAINER, _JXL_CODESTREAM)) else None


def installed() -> tuple[str, ...]:
    """Return the names of the optional formats that can be decoded here; nothing is loaded."""
    return tuple(one.name for one in (HEIF, JXL) if _module(one) is not None)


def prepare(format: OptionalFormat, data: bytes) -> None:
    """Load the decoder of a file's format.

    Raises:
        ImageRejected: ``decoder-missing``, or ``too-large`` for a JPEG XL, whose decoder has no limit of its own.
    """
    module = _module(format)
    if module is None:
        raise ImageRejected(
            DECODER_MISSING, f"{format.name}, which needs a decoder: pip install {format.package}, or save it as JPEG"
        )
    _load(module)
    size = _jxl_size(data) if format is JXL else None
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise ImageRejected("too-large", f"{size[0]}×{size[1]} px; at most {MOST_PIXELS} pixels can be decoded")


def _module(format: OptionalFormat) -> str | None:
    return next((name for name in format.modules if importlib.util.find_spec(name) is not None), None)


@cache
def _load(module: str) -> None:
    """Load a decoder, which tells Pillow of its format."""
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ImageRejected(DECODER_MISSING, f"{module} is installed and cannot be loaded ({error})") from None
    if hasattr(loaded, "register_heif_opener"):
        loaded.register_heif_opener()


def _jxl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the header of a JPEG XL (ISO/IEC 18181-1, "SizeHeader"); None if there is none."""
    start = data.find(_JXL_CODESTREAM, 0, 1 << 20)  # in a container it lies in a box behind others
    if start < 0:
        return None
    bits = _Bits(data[start + 2 : start + 18])
    small = bits.read(1)

    def length() -> int:
        return 8 * (1 + bits.read(5)) if small else 1 + bits.read((9, 13, 18, 30)[bits.read(2)])

    height = length()
    ratio = bits.read(3)
    return (height * _JXL_RATIOS[ratio][0] // _JXL_RATIOS[ratio][1] if ratio else length(), height)


class _Bits:
    """Reads whole numbers from bytes, the lowest bit of each first; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value
