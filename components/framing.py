"""Framing: how a picture of any size becomes pixels of the size that models see."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.images import ImageLimits, decode

# What reaches a model has passed ingest's limits; here only Pillow's own bound is left.
_ACCEPTED = ImageLimits(min_side=1, max_pixels=89_478_485)


class Frame(NamedTuple):
    """A picture cut to size.

    Attributes:
        pixels: 8-bit RGB, ``[H, W, 3]``.
        original_size: Width and height of the whole picture in pixels.
        crop: The part of it that was taken: left, top, width and height in its pixels.
    """

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]
    crop: tuple[int, int, int, int]


def frame(data: bytes, height: int, width: int) -> Frame:
    """Decode an image file and cut it to size.

    Raises:
        ImageRejected: Where it cannot be decoded.
    """
    return cut(decode(data, _ACCEPTED), height, width)


def cut(image: Image.Image, height: int, width: int) -> Frame:
    """Take the largest centred part of the wanted aspect ratio and scale it (Lanczos) to the wanted size."""
    crop = centre_crop(image.width, image.height, height, width)
    left, top, crop_width, crop_height = crop
    # Cropped first: with resize's own ``box`` the filter would reach over the crop's edges.
    part = image.crop((left, top, left + crop_width, top + crop_height))
    scaled = part.resize((width, height), Image.Resampling.LANCZOS)
    return Frame(np.array(scaled, dtype=np.uint8), image.size, crop)


def centre_crop(image_width: int, image_height: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the largest centred part with the aspect ratio ``width : height``."""
    crop_width = min(image_width, max(1, round(image_height * width / height)))
    crop_height = min(image_height, max(1, round(image_width * height / width)))
    return (image_width - crop_width) // 2, (image_height - crop_height) // 2, crop_width, crop_height
