"""Framing: how a picture of any size becomes pixels of the size that models see."""

from __future__ import annotations

from math import ceil, cos, radians, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from components.image.decoding import ImageLimits, decode

# What reaches a model has passed ingest's limits; here only Pillow's own bound is left.
ACCEPTED = ImageLimits(min_side=1, max_pixels=89_478_485)
# Pixels around a part that is turned, from which the filter takes what lies at its corners.
_MARGIN = 2

# Left, top, width and height in pixels.
Box = tuple[int, int, int, int]


class View(NamedTuple):
    """How a picture is looked at.

    Attributes:
        left: Where the part lies that is taken, from 0, at the left edge, up to 1; None: in the middle.
        top: The same from the top edge.
        zoom: Share of the largest possible part's sides that is taken.
        rotation: Degrees by which the picture is turned counter-clockwise.
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
    """A picture cut to size.

    Attributes:
        pixels: 8-bit RGB, ``[H, W, 3]``.
        original_size: Width and height of the whole picture in pixels.
        crop: The part of it that was taken: left, top, width and height in its pixels, before it was turned about
            the part's centre and mirrored.
    """

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]
    crop: Box


def frame(data: bytes, height: int, width: int) -> Frame:
    """Decode an image file and cut it to size.

    Raises:
        ImageRejected: Where it cannot be decoded.
    """
    return cut(decode(data, ACCEPTED), height, width)


def cut(image: Image.Image, height: int, width: int, view: View = PLAIN) -> Frame:
    """Take a part of the wanted aspect ratio and scale it (Lanczos) to the wanted size; the largest unless told."""
    box = crop_box(image.width, image.height, height, width, view)
    # Cropped first: with resize's own ``box`` the filter would reach over the crop's edges.
    part = _turned(image, box, view.rotation) if view.rotation else image.crop(_edges(box))
    scaled = _coloured(part.resize((width, height), Image.Resampling.LANCZOS), view)
    if view.flipped:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Frame(np.array(scaled, dtype=np.uint8), image.size, box)


def crop_box(image_width: int, image_height: int, height: int, width: int, view: View = PLAIN) -> Box:
    """Return the part of a picture that a view takes, with the aspect ratio ``width : height``.

    A part that is turned is made smaller where its corners would leave the picture.
    """
    crop_width = view.zoom * min(image_width, image_height * width / height)
    crop_height = view.zoom * min(image_height, image_width * height / width)
    # The upright box around the turned part, per pixel of its width and height.
    wide, tall = _around(crop_width, crop_height, view.rotation)
    margin = 2 * _MARGIN if view.rotation else 0
    shrink = min(1.0, max(image_width - margin, 1) / wide, max(image_height - margin, 1) / tall)
    crop_width = min(image_width, max(1, round(shrink * crop_width)))
    crop_height = min(image_height, max(1, round(shrink * crop_height)))
    wide, tall = _around(crop_width, crop_height, view.rotation)
    left = _place(image_width, min(image_width, ceil(wide) + margin), crop_width, view.left)
    top = _place(image_height, min(image_height, ceil(tall) + margin), crop_height, view.top)
    return left, top, crop_width, crop_height


def time_ids(
    original_size: tuple[int, int], crop: Box, target: tuple[int, int], flipped: bool
) -> tuple[int, int, int, int, int, int]:
    """Return SDXL's micro-conditioning of a picture cut to size, as its pipeline's ``add_time_ids`` has it.

    It is the original size, the crop's top left corner and the target size, each height (or y) first: Podell et al.,
    arXiv:2307.01952, §2.2. The corner is told in pixels of the picture once it is scaled, and mirrored if it is, as
    SDXL's training scales and mirrors first and then crops.

    Args:
        original_size: Width and height of the whole picture in pixels.
        crop: The part of it that was taken.
        target: Height and width that it was scaled to.
        flipped: Whether it was mirrored.
    """
    (image_width, image_height), (left, top, crop_width, crop_height), (height, width) = original_size, crop, target
    if flipped:
        left = image_width - left - crop_width
    corner = round(top * height / crop_height), round(left * width / crop_width)
    return image_height, image_width, *corner, height, width


def _place(room: int, around: int, inside: int, place: float | None) -> int:
    """Return where a stretch begins in the middle of a longer one that is placed in the room there is."""
    if place is None:
        return (room - inside) // 2
    return int(place * (room - around + 1)) + (around - inside) // 2


def _around(width: float, height: float, degrees: float) -> tuple[float, float]:
    """Return width and height of the upright box around a turned one."""
    if not degrees:
        return width, height
    cosine, sine = abs(cos(radians(degrees))), abs(sin(radians(degrees)))
    return width * cosine + height * sine, width * sine + height * cosine


def _turned(image: Image.Image, box: Box, degrees: float) -> Image.Image:
    """Turn a picture about a box's centre and return what is in the box then."""
    left, top, width, height = box
    wide, tall = _around(width, height, degrees)
    across, down = ceil((wide - width) / 2) + _MARGIN, ceil((tall - height) / 2) + _MARGIN
    region = image.crop((left - across, top - down, left + width + across, top + height + down))
    turned = region.rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((across, down, across + width, down + height))


def _coloured(image: Image.Image, view: View) -> Image.Image:
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
