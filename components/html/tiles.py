"""Images small enough to be embedded in a page."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from PIL import Image

# Up to this many pixels a side a tile stays as it was drawn, and the page shows its pixels; above, it is a photograph.
EXACT = 64


class Tile(NamedTuple):
    """One image as a ``data:`` URI; width and height in pixels."""

    uri: str
    width: int
    height: int


def tile(image: Image.Image, longest: int, quality: int = 90) -> Tile:
    """Return an image as a page embeds it, scaled down if a side is longer than ``longest`` pixels."""
    buffer = io.BytesIO()
    if max(image.size) <= EXACT:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return Tile(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size)
