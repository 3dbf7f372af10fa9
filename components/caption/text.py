"""What a caption may be: one line of text, neither empty nor endless."""

from __future__ import annotations

import unicodedata

from components.errors import ImageRejected

# A caption file beyond this size is not even read, in bytes.
LARGEST_FILE = 1 << 20


def from_bytes(data: bytes, max_characters: int) -> str:
    """Return the caption that a file holds.

    Raises:
        ImageRejected: ``caption-not-utf8``, ``caption-empty`` or ``caption-too-long``.
    """
    try:
        text = data.decode("utf-8-sig")  # editors on Windows put a byte order mark in front
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 4]
        raise ImageRejected(
            "caption-not-utf8", f"found {found!r} at byte {error.start}; save the file as UTF-8"
        ) from None
    return one_line(text, max_characters)


def one_line(text: str, max_characters: int) -> str:
    """Return a caption with every run of white space and control characters made one space.

    Raises:
        ImageRejected: ``caption-empty`` or ``caption-too-long``.
    """
    printable = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
    caption = " ".join(printable.split())
    if not caption:
        raise ImageRejected("caption-empty", f"{len(text)} characters, all of them white space; write a caption")
    if len(caption) > max_characters:
        raise ImageRejected(
            "caption-too-long", f"{len(caption)} characters, at most {max_characters} are taken (max_characters)"
        )
    return caption
