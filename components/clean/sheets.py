"""Contact sheets: pictures of the source, small enough for a page, or why one cannot be shown."""

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

# Few at a time: a picture may take some hundred megabytes while it is decoded.
READERS = 2
QUALITY = 80


class Picture(NamedTuple):
    """One picture of a contact sheet.

    Attributes:
        name: Its name in the source.
        text: Its caption, or why it is left out.
        tile: The picture, or None where it cannot be shown.
        problem: Why it cannot.
    """

    name: str
    text: str
    tile: Tile | None
    problem: str = ""


Sheet = list[Picture]


def read_sheets(source: str, chosen: Sequence[Shown], longest: int) -> list[Sheet]:
    """Read the pictures of some contact sheets; one that cannot be read or decoded has a problem in its place.

    Args:
        source: URL of the source.
        chosen: Which pictures, for each sheet.
        longest: Longest side of a picture on the page, in pixels.
    """
    try:
        place = open_source(source)
    except DataError as error:
        return [[Picture(name, text, None, str(error)) for _, name, _, text in sheet.chosen] for sheet in chosen]

    def read(wanted: tuple[str, str, str, str]) -> Picture:
        _, name, digest, text = wanted
        return _read(place, name, digest, text, longest)

    with ThreadPoolExecutor(READERS, thread_name_prefix="sheets") as pool:
        return [list(pool.map(read, sheet.chosen)) for sheet in chosen]


def _read(source: Source, name: str, digest: str, text: str, longest: int) -> Picture:
    limits = ImageLimits(min_side=1, max_aspect=None)
    try:
        # What is too large to be taken is not to be read for the sake of a report either.
        data = source.read(name, 0, limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            raise ImageRejected("too-large", f"more than {limits.max_bytes} bytes")
        if digest and sha256(data) != digest:
            raise ImageRejected("changed", "it is not the file that was looked at")
        return Picture(name, text, tile(decode(data, limits), longest, QUALITY))
    except ImageRejected as refused:
        return Picture(name, text, None, refused.reason)
    except DarkroomError as error:
        return Picture(name, text, None, str(error))
