"""Framing: the largest centred crop, scaled to the size of the bucket."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from components.errors import ImageRejected
from components.image.framing import crop_box, cut, frame


@pytest.mark.parametrize(
    ("image", "size", "crop"),
    [
        ((100, 50), (32, 32), (25, 0, 50, 50)),
        ((50, 100), (32, 32), (0, 25, 50, 50)),
        ((64, 64), (32, 32), (0, 0, 64, 64)),
        ((10, 10), (32, 32), (0, 0, 10, 10)),
        ((101, 50), (50, 50), (25, 0, 50, 50)),
        ((100, 100), (16, 32), (0, 25, 100, 50)),
        ((100, 100), (32, 16), (25, 0, 50, 100)),
        ((1, 1000), (32, 32), (0, 499, 1, 1)),
        ((1000, 1), (32, 32), (499, 0, 1, 1)),
        ((3, 1), (8, 4096), (0, 0, 3, 1)),
    ],
)
def test_crop_is_the_largest_centred_crop(
    image: tuple[int, int], size: tuple[int, int], crop: tuple[int, int, int, int]
) -> None:
    assert crop_box(*image, *size) == crop


def test_image_of_the_target_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    framed = cut(Image.fromarray(pixels), 16, 24)
    np.testing.assert_array_equal(framed.pixels, pixels)
    assert (framed.original_size, framed.crop) == ((24, 16), (0, 0, 24, 16))


def test_borders_outside_the_crop_do_not_shine_through() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 40:] = 255, 255
    framed = cut(Image.fromarray(pixels), 8, 8)
    assert framed.pixels.shape == (8, 8, 3)
    assert framed.pixels.max() == 0


def test_file_is_decoded_upright_before_it_is_cut() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(stream, format="JPEG", exif=exif)
    assert frame(stream.getvalue(), 8, 8).original_size == (20, 40)


def test_tiny_images_are_accepted_and_bad_ones_rejected() -> None:
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, format="PNG")
    assert frame(stream.getvalue(), 8, 16).pixels.shape == (8, 16, 3)
    with pytest.raises(ImageRejected):
        frame(b"no image", 8, 8)
