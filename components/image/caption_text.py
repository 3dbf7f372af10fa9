"""The text of a caption file, in whatever encoding it was saved.

The beginning of a file tells UTF-8, UTF-16 and UTF-32 apart, if an editor marked it; without a mark it is UTF-8. Other
encodings cannot be told apart with certainty (every byte is a letter in most of them), so nothing is guessed.
"""

from __future__ import annotations

import codecs

from components.errors import ImageRejected

NOT_UTF8 = "caption-not-utf8"
LONGEST_MARK = 4  # bytes

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def marked_encoding(data: bytes) -> str | None:
    """Return the encoding that the mark at the beginning of a file names, or None if there is no mark."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def decode_caption(data: bytes, fallback: str | None = None) -> str:
    """Return the text that a caption file holds.

    Args:
        data: The file's bytes.
        fallback: The encoding of a file that is neither marked nor UTF-8, such as ``cp1252``; None if there is none.

    Raises:
        ImageRejected: ``caption-not-utf8``, with what is wrong.
    """
    marked = marked_encoding(data)
    if marked is not None:
        return _decode(data, marked)
    try:
        return _decode(data, "utf-8")
    except ImageRejected:
        if fallback is None:
            raise
        return _decode(data, fallback)


_ADVICE = "save the file as UTF-8, or set caption.encoding"


def _decode(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        problem = f"not {encoding.upper()}: it has {data[start : start + 4]!r} at byte {start}"
        raise ImageRejected(NOT_UTF8, f"{problem}; {_ADVICE}") from None
    # Single NULs are dirt; in UTF-16 without a mark every other byte of English is one.
    if text.count("\0") * 4 > len(text):
        problem = f"{text.count(chr(0))} of {len(text)} characters are NUL, as in UTF-16 without a mark"
        raise ImageRejected(NOT_UTF8, f"{problem}; {_ADVICE}")
    return text
