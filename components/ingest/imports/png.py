"""Write pixels as PNG, the same bytes with every version of every library: zlib's output differs between versions.

So nothing is compressed; the file is what the pixels take, and a few bytes for each 64 KiB (RFC 1950 and 1951, PNG 3).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_COLORS = {1: 0, 3: 2, 4: 6}  # PNG's numbers of gray, RGB and RGBA, by the number of channels
_BLOCK = 0xFFFF  # bytes; the longest stored block


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels ``[H, W, 1 | 3 | 4]`` as a PNG."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLORS[channels], 0, 0, 0)
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, width * channels)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _stored(data: bytes) -> bytes:
    """Return a zlib stream of blocks that are not compressed."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        is_last = start + _BLOCK >= len(data)
        parts += (struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block)
    return b"".join((*parts, struct.pack(">I", zlib.adler32(data))))
