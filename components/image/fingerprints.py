"""Perceptual hashes of 64 bits: images that look alike differ in few of them.

The perceptual hash by DCT of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
§3.2.1: which of the lowest frequencies of a small grey image are above their median.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # pixels of the small grey image
LOW = 8  # frequencies used along each side, without the constant ones, such as the brightness

# Hashes of another version must not be compared with these.
VERSION = 1


def perceptual_hash(image: Image.Image) -> str:
    """Return the 64-bit hash of an RGB or grey image, as 16 hex digits.

    An image without any structure, such as one colour, has the hash 0.
    """
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.float64)  # [32, 32]
    basis = _dct_rows()  # [8, 32]
    # Rounded, so that a zero that depends on the order of the additions is zero on every machine.
    low = np.round(basis @ pixels @ basis.T, 3).ravel()  # [64], rows of vertical frequency
    bits = np.packbits(low > np.median(low))
    return bits.tobytes().hex()


def as_numbers(hashes: list[str]) -> NDArray[np.uint64]:
    """Return hashes as 64-bit integers, [N]."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").astype(np.uint64)


@cache
def _dct_rows() -> NDArray[np.float64]:
    """Return rows 1 to 8 of the orthonormal DCT-II of 32 points, [8, 32]."""
    frequency = np.arange(1, LOW + 1)[:, None]
    position = np.arange(SIDE)[None, :]
    rows: NDArray[np.float64] = np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * position + 1) / (2 * SIDE))
    return rows
