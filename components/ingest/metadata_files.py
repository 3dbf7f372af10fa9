"""Read metadata.jsonl and metadata.csv: each line names an image and has its caption, licence and origin.

The format is that of the imagefolder of diffusers and `datasets`: ``file_name`` is the image's path below the folder of
the metadata file; other tools call it ``filename``, ``image`` or ``image_path``. Lines are read one by one, so that a
file may have any number of them.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from components.errors import ImageRejected
from components.image.caption_text import LONGEST_MARK, marked_encoding
from components.image.records import Rejection
from components.image.sources import ReadRange
from components.ingest.metadata_fields import BROKEN, MetadataFields, metadata_fields, parse_object

FILE_NAMES = ("metadata.jsonl", "metadata.csv")

_FILE = ("file_name", "filename", "file", "image", "image_path", "path")

PIECE = 8 << 20  # bytes read at once
LONGEST_LINE = 1 << 20  # bytes


class MetadataLine(NamedTuple):
    """One line of metadata.

    Attributes:
        image: The image's name in the source.
        line: The number of the line.
        fields: What the line says of the image.
    """

    image: str
    line: int
    fields: MetadataFields


def read_metadata(name: str, read: ReadRange, caption_fields: Sequence[str]) -> Iterator[MetadataLine | Rejection]:
    """Yield each line of a metadata file, or why it cannot be used.

    Args:
        name: The file's name in the source.
        read: Reads it.
        caption_fields: Names of fields that hold captions.
    """
    folder = name[: name.rfind("/") + 1]
    encoding = marked_encoding(read(0, LONGEST_MARK))
    if encoding not in (None, "utf-8-sig"):  # one rejection rather than one for each line
        yield Rejection(name, "ingest", BROKEN, f"its encoding is {str(encoding).upper()}; save the file as UTF-8")
        return
    rows = json_rows(read) if name.endswith(".jsonl") else csv_rows(read, _FILE)
    for number, row in rows:
        try:
            if isinstance(row, ImageRejected):
                raise row
            yield MetadataLine(folder + _path(row), number, metadata_fields(row, caption_fields))
        except ImageRejected as error:
            yield Rejection(f"{name}:{number}", "ingest", error.reason, error.detail)


def _path(row: Mapping[str, Any]) -> str:
    """Return the path of a line's image, which must be below the metadata's folder."""
    name = next((name for name in _FILE if name in row), _FILE[0])
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ImageRejected(BROKEN, f"{name} is {value!a:.200}, expected the path of an image below this folder")
    parts = [part for part in value.replace("\\", "/").split("/") if part != "."]
    if ".." in parts or "" in parts:
        raise ImageRejected("metadata-outside", f"{name} {value!a:.200} is not a path below the metadata's folder")
    return "/".join(parts)


Rows = Iterator[tuple[int, Mapping[str, Any] | ImageRejected]]


def json_rows(read: ReadRange) -> Rows:
    """Yield the objects of JSON Lines with the numbers of their lines, or why a line cannot be used."""
    for number, line in read_lines(read):
        if isinstance(line, ImageRejected):
            yield number, line
        elif line.strip():
            try:
                yield number, parse_object(line)
            except ImageRejected as error:
                yield number, error


def csv_rows(read: ReadRange, needed: Collection[str], delimiter: str = ",") -> Rows:
    """Yield the rows of CSV, as `json_rows` does; its first line has the names, one of which must be a needed one."""
    rejected: list[tuple[int, ImageRejected]] = []
    reader = csv.reader(_text(read_lines(read), rejected), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # such as a quote that is never closed; what follows is read again
            yield reader.line_num, ImageRejected(BROKEN, f"not CSV ({error}); correct it")
            continue
        yield from rejected
        rejected.clear()
        if row is None:
            return
        if header is None:
            header = [name.strip() for name in row]
            if not set(needed) & set(header):
                one = next(iter(needed))
                yield 1, ImageRejected(BROKEN, f"its columns are {', '.join(header)!a:.200}; one must be {one}")
                return
        elif len(row) == len(header):
            yield reader.line_num, dict(zip(header, row, strict=True))
        elif row:
            yield reader.line_num, ImageRejected(BROKEN, f"{len(row)} values, expected {len(header)} as in line 1")


def _text(
    lines: Iterable[tuple[int, bytes | ImageRejected]], rejected: list[tuple[int, ImageRejected]]
) -> Iterator[str]:
    """Yield lines as text for the CSV reader; a line that cannot be read is added to ``rejected``."""
    for number, line in lines:
        if isinstance(line, ImageRejected):
            rejected.append((number, line))
            continue
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
        except UnicodeDecodeError as error:
            position, invalid = error.start, line[error.start : error.start + 4]
            detail = f"not UTF-8: it has {invalid!r} at byte {position}; save the file as UTF-8"
            rejected.append((number, ImageRejected(BROKEN, detail)))


def read_lines(read: ReadRange) -> Iterator[tuple[int, bytes | ImageRejected]]:
    """Yield the lines of a file with their numbers; one that is too long is rejected and not kept in memory."""
    number, rest, skipping, position = 1, b"", False, 0
    while True:
        piece = read(position, PIECE)
        position += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        if not piece:  # the end: the rest is the last line
            lines, rest = [rest] if rest or skipping else [], b""
        for line in lines:
            if skipping or len(line) > LONGEST_LINE:
                yield number, ImageRejected(BROKEN, f"the line has more than {LONGEST_LINE} bytes")
                skipping = False
            else:
                yield number, line.removesuffix(b"\r")
            number += 1
        if not piece:
            return
        if len(rest) > LONGEST_LINE:
            skipping, rest = True, b""
