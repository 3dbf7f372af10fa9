"""Framing: crop and scale an image of any size to the size of a bucket."""

from __future__ import annotations

from math import ceil, cos, radians, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from components.image.decoding import ImageLimits, decode

# The images have passed ingest's limits before; here only Pillow's own limit applies.
ACCEPTED = ImageLimits(min_side=1, max_pixels=89_478_485)
# Pixels around a rotated crop, which the filter needs at its corners.
_MARGIN = 2

# Left, top, width and height in pixels.
Box = tuple[int, int, int, int]


class View(NamedTuple):
    """How an image is cropped and augmented.

    Attributes:
        left: Position of the crop, from 0 (left edge) up to 1; None: in the middle.
        top: The same from the top edge.
        zoom: Sides of the crop as a share of the largest possible crop's.
        rotation: Degrees by which the image is rotated counter-clockwise.
        flipped: Whether it is mirrored left to right.
        brightness: Factor of its brightness.
        contrast: Factor of its contrast.
        saturation: Factor of its saturation.
    """

    left: float | None = None
    top: float | None = None
    zoom: float = 1.0
    rotation: float = 0.0
    flipped: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


PLAIN = View()


class Frame(NamedTuple):
    """An image cropped and scaled.

    Attributes:
        pixels: 8-bit RGB, ``[H, W, 3]``.
        original_size: Width and height of the whole image in pixels.
        crop: Left, top, width and height of the crop in pixels of the whole image, before it was rotated about the
            crop's centre and mirrored.
    """

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]
    crop: Box


def frame(data: bytes, height: int, width: int) -> Frame:
    """Decode an image file, crop it and scale it.

    Raises:
        ImageRejected: If it cannot be decoded.
    """
    return cut(decode(data, ACCEPTED), height, width)


def cut(image: Image.Image, height: int, width: int, view: View = PLAIN) -> Frame:
    """Crop an image as the view says and scale it (Lanczos) to ``width`` and ``height``."""
    box = crop_box(image.width, image.height, height, width, view)
    # Cropped first: with resize's own ``box`` the filter would reach over the crop's edges.
    part = _rotated(image, box, view.rotation) if view.rotation else image.crop(_edges(box))
    scaled = _adjust_colours(part.resize((width, height), Image.Resampling.LANCZOS), view)
    if view.flipped:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Frame(np.array(scaled, dtype=np.uint8), image.size, box)


def crop_box(image_width: int, image_height: int, height: int, width: int, view: View = PLAIN) -> Box:
    """Return the crop that a view selects, with the aspect ratio ``width : height``.

    A rotated crop is made smaller if its corners would be outside the image.
    """
    crop_width = view.zoom * min(image_width, image_height * width / height)
    crop_height = view.zoom * min(image_height, image_width * height / width)
    # Width and height of the upright box around the rotated crop.
    wide, tall = _bounding_size(crop_width, crop_height, view.rotation)
    margin = 2 * _MARGIN if view.rotation else 0
    shrink = min(1.0, max(image_width - margin, 1) / wide, max(image_height - margin, 1) / tall)
    crop_width = min(image_width, max(1, round(shrink * crop_width)))
    crop_height = min(image_height, max(1, round(shrink * crop_height)))
    wide, tall = _bounding_size(crop_width, crop_height, view.rotation)
    left = _offset(image_width, min(image_width, ceil(wide) + margin), crop_width, view.left)
    top = _offset(image_height, min(image_height, ceil(tall) + margin), crop_height, view.top)
    return left, top, crop_width, crop_height


def time_ids(
    original_size: tuple[int, int], crop: Box, target: tuple[int, int], flipped: bool
) -> tuple[int, int, int, int, int, int]:
    """Return SDXL's micro-conditioning of a cropped image, as its pipeline's ``add_time_ids`` has it.

    It is the original size, the crop's top left corner and the target size, each height (or y) first: Podell et al.,
    arXiv:2307.01952, §2.2. The corner is in pixels of the scaled image, mirrored if the crop is, since SDXL's training
    scales and mirrors first and then crops.

    Args:
        original_size: Width and height of the whole image in pixels.
        crop: The crop, in pixels of the whole image.
        target: Height and width that it was scaled to.
        flipped: Whether it was mirrored.
    """
    (image_width, image_height), (left, top, crop_width, crop_height), (height, width) = original_size, crop, target
    if flipped:
        left = image_width - left - crop_width
    corner = round(top * height / crop_height), round(left * width / crop_width)
    return image_height, image_width, *corner, height, width


def _offset(image: int, bounding: int, crop: int, position: float | None) -> int:
    """Return where a crop begins along one side, in the middle of its bounding box at ``position`` in the image."""
    if position is None:
        return (image - crop) // 2
    return int(position * (image - bounding + 1)) + (bounding - crop) // 2


def _bounding_size(width: float, height: float, degrees: float) -> tuple[float, float]:
    """Return width and height of the upright box around a rotated one."""
    if not degrees:
        return width, height
    cosine, sine = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    return width * cosine + height * sine, width * sine + height * cosine


def _rotated(image: Image.Image, box: Box, degrees: float) -> Image.Image:
    """Rotate an image about a box's centre and return what is in the box then."""
    left, top, width, height = box
    wide, tall = _bounding_size(width, height, degrees)
    across, down = ceil((wide - width) / 2) + _MARGIN, ceil((tall - height) / 2) + _MARGIN
    region = image.crop((left - across, top - down, left + width + across, top + height + down))
    rotated = region.rotate(degrees, Image.Resampling.BICUBIC)
    return rotated.crop((across, down, across + width, down + height))


def _adjust_colours(image: Image.Image, view: View) -> Image.Image:
    for kind, factor in (
        (ImageEnhance.Brightness, view.brightness),
        (ImageEnhance.Contrast, view.contrast),
        (ImageEnhance.Color, view.saturation),
    ):
        image = kind(image).enhance(factor) if factor != 1 else image
    return image


def _edges(box: Box) -> Box:
    left, top, width, height = box
    return left, top, left + width, top + height
