"""Contact sheets cut into tiles that a page can carry within itself."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

from components.html.tiles import Tile, tile


def tiles(sheet: bytes, size: tuple[int, int], limit: int, longest: int) -> list[Tile]:
    """Cut a contact sheet into its images, row by row.

    Args:
        sheet: A PNG.
        size: Height and width of one image in pixels.
        limit: How many images to take, at most.
        longest: Longest side that an image may keep, in pixels.

    Raises:
        ValueError: If the sheet is not a PNG, or is not made of images of that size.
    """
    height, width = size
    try:
        whole = Image.open(io.BytesIO(sheet), formats=["PNG"]).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's PNG reader raises SyntaxError too
        raise ValueError(f"the contact sheet is not a PNG that can be read: {error}") from None
    if min(size) < 1 or whole.width % width or whole.height % height:
        actual = f"{whole.width}×{whole.height}"
        raise ValueError(f"the contact sheet is {actual} pixels, expected rows of images of {width}×{height}")
    return [tile(whole.crop(box), longest) for box in _boxes(whole, width, height, limit)]


def _boxes(whole: Image.Image, width: int, height: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    columns, rows = whole.width // width, whole.height // height
    for index in range(min(limit, columns * rows)):
        left, top = index % columns * width, index // columns * height
        yield left, top, left + width, top + height
