"""Contact sheets: images of the source, small enough for a page, or why one cannot be shown."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from components.clean.tally import Shown
from components.digests import sha256
from components.errors import DarkroomError, DataError, ImageRejected
from components.html.tiles import Tile, tile
from components.image.decoding import ImageLimits, decode
from components.image.sources import Source, open_source

# Few at a time: an image may take some hundred megabytes while it is decoded.
READERS = 2
QUALITY = 80


class Thumbnail(NamedTuple):
    """One image of a contact sheet, scaled down.

    Attributes:
        name: Its name in the source.
        text: Its caption, or why it was rejected.
        tile: The image, or None if it cannot be shown.
        problem: Why it cannot be shown.
    """

    name: str
    text: str
    tile: Tile | None
    problem: str = ""


Sheet = list[Thumbnail]


def read_sheets(source: str, chosen: Sequence[Shown], longest: int) -> list[Sheet]:
    """Read the images of some contact sheets; one that cannot be read or decoded has a problem in its place.

    Args:
        source: URL of the source.
        chosen: The images of each sheet.
        longest: Longest side of an image on the page, in pixels.
    """
    try:
        images = open_source(source)
    except DataError as error:
        return [[Thumbnail(name, text, None, str(error)) for _, name, _, text in sheet.chosen] for sheet in chosen]

    def read(image: tuple[str, str, str, str]) -> Thumbnail:
        _, name, digest, text = image
        return _read(images, name, digest, text, longest)

    with ThreadPoolExecutor(READERS, thread_name_prefix="sheets") as pool:
        return [list(pool.map(read, sheet.chosen)) for sheet in chosen]


def _read(source: Source, name: str, digest: str, text: str, longest: int) -> Thumbnail:
    limits = ImageLimits(min_side=1, max_aspect=None)
    try:
        # A file too large for ingest is not read for the report, either.
        data = source.read(name, 0, limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            raise ImageRejected("too-large", f"more than {limits.max_bytes} bytes")
        if digest and sha256(data) != digest:
            raise ImageRejected("changed", "it is not the file that was captioned")
        return Thumbnail(name, text, tile(decode(data, limits), longest, QUALITY))
    except ImageRejected as rejection:
        return Thumbnail(name, text, None, rejection.reason)
    except DarkroomError as error:
        return Thumbnail(name, text, None, str(error))
