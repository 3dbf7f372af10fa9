"""What a row of a file is to the import, whatever the file's format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from components.errors import ImageRejected

# Reasons of rejections.
BROKEN, NO_IMAGE, BAD_COLUMNS, BAD_PATH = "table-broken", "row-without-image", "table-columns", "row-path"

# Bytes of a text; a longer one is cut to one more, and the caption step rejects it.
LONGEST_TEXT = 100_000


class ImageRow(NamedTuple):
    """One row of a file.

    Attributes:
        number: Its number in the file, from 0.
        image: The image file; None if the row is rejected.
        fields: What the row says of the image: names with text, numbers or lists of text.
        caption: Its caption, if that is in a column whose name does not say so.
        label: The name of its class, if it has one.
        problems: Why the row, or a part of it, is rejected.
    """

    number: int
    image: bytes | None
    fields: Mapping[str, Any]
    caption: str | None = None
    label: str = ""
    problems: tuple[ImageRejected, ...] = ()


class RowReader(Protocol):
    """Reads the rows of an open file."""

    def batches(self, start: int) -> Iterator[Iterable[ImageRow]]:
        """Yield all rows from one on, in their order, some at a time.

        Raises:
            ImageRejected: ``table-broken``, if the rest cannot be read; the rows before remain valid.
        """


# Opens a file; raises ImageRejected if it is not what its name says, or has no column of images.
Opened = AbstractContextManager[RowReader]


def text_of(data: bytes, name: str) -> str:
    """Return the text of a column.

    Raises:
        ImageRejected: ``metadata-broken``, if it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        wrong = data[error.start : error.start + 4]
        raise ImageRejected(
            "metadata-broken", f"its {name[:100]} is not UTF-8: it has {wrong!r} at byte {error.start}; correct it"
        ) from None
