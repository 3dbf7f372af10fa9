"""What earlier runs of ingest read, so that an unchanged file is not read again.

A file is known by name, size and modification tag, as version control systems know it; what an archive holds is known
by the archive's. What is remembered is what the bytes say, never what the settings make of it: new limits are applied
without reading anything.

``known/00000.jsonl`` and so on hold all of it in the order of names. While a run reads, it adds a journal,
``known/new-00000.jsonl`` and so on, which goes into the others when it ends; a run that is killed loses at most what it
read since the last part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from components.errors import DataError, NotFound
from components.image.records import ingest_prefix
from components.storage.base import Storage

FORMAT = 2
ROWS = 50_000  # of one part


class Seen(NamedTuple):
    """What reading a file, or a member of an archive, told.

    Attributes:
        name: Its name in the source.
        owner: The archive that it is in; the file itself where it is in none.
        tag: The owner's tag when it was listed.
        bytes: Its size.
        sha256: Digest of its bytes, where it is called like an image.
        width: Pixels, upright; 0 where it is no image.
        height: Pixels, upright.
        format: What it is, such as ``JPEG``; empty where it is no image.
        reason: Why it cannot be used.
        detail: Why, for a person.
        caption: Name of the caption that came with it in an archive, or that it is.
        caption_bytes: Size of that caption.
        text: The caption's words, where they are known.
        license: Licence that came with it.
        source: Where it came from.
    """

    name: str
    owner: str
    tag: str
    bytes: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    reason: str = ""
    detail: str = ""
    caption: str = ""
    caption_bytes: int = 0
    text: str | None = None
    license: str | None = None
    source: str | None = None


_DEFAULTS = tuple(Seen._field_defaults.get(name, object()) for name in Seen._fields)


def read_known(workdir: Storage, source_id: str) -> Iterator[Seen]:
    """Yield what was known when the last run ended; what cannot be read is not known."""
    return _read(workdir, source_id, journal=False)


def read_journal(workdir: Storage, source_id: str) -> Iterator[Seen]:
    """Yield what a run that did not end has read."""
    return _read(workdir, source_id, journal=True)


def write_known(workdir: Storage, source_id: str, rows: Iterable[Seen]) -> None:
    """Write all that is known, sorted by name; the journal stays."""
    rows = iter(rows)
    current: set[str] = set()
    while part := list(islice(rows, ROWS)):
        key = f"{_folder(source_id)}/{len(current):05d}.jsonl"
        _write(workdir, key, part)
        current.add(key)
    for key in _keys(workdir, source_id):
        if key not in current and not _in_journal(key):
            workdir.delete(key)


class Journal:
    """What a run reads, written down on the way.

    Args:
        workdir: Where the records are.
        source_id: The source's name.
    """

    def __init__(self, workdir: Storage, source_id: str) -> None:
        self._workdir = workdir
        self._source_id = source_id
        found = [key for key in _keys(workdir, source_id) if _in_journal(key)]
        self._next = 1 + max((int(key[-11:-6]) for key in found if key[-11:-6].isdecimal()), default=-1)

    def add(self, rows: Sequence[Seen]) -> None:
        """Write some down."""
        _write(self._workdir, f"{_folder(self._source_id)}/new-{self._next:05d}.jsonl", rows)
        self._next += 1


def remove_journal(workdir: Storage, source_id: str) -> None:
    """Remove the journal."""
    for key in _keys(workdir, source_id):
        if _in_journal(key):
            workdir.delete(key)


def _read(workdir: Storage, source_id: str, *, journal: bool) -> Iterator[Seen]:
    for key in _keys(workdir, source_id):
        if _in_journal(key) == journal:
            with suppress(NotFound, DataError, TypeError, KeyError):
                yield from _part(workdir, key)


def _part(workdir: Storage, key: str) -> list[Seen]:
    lines = workdir.read_lines(key)
    if next(lines, None) != {"format": FORMAT}:
        return []
    return [Seen(**{"owner": values["name"], **values}) for values in lines]


def _write(workdir: Storage, key: str, rows: Iterable[Seen]) -> None:
    workdir.write_lines(key, [{"format": FORMAT}, *map(_values, rows)])


def _values(row: Seen) -> dict[str, object]:
    """Return what is not as it is by default."""
    values: dict[str, object] = {
        name: value for name, value, default in zip(Seen._fields, row, _DEFAULTS, strict=True) if value != default
    }
    if row.owner == row.name:
        del values["owner"]
    return values


def _keys(workdir: Storage, source_id: str) -> list[str]:
    return [entry.key for entry in workdir.list(_folder(source_id))]


def _in_journal(key: str) -> bool:
    return key.rpartition("/")[2].startswith("new-")


def _folder(source_id: str) -> str:
    return f"{ingest_prefix(source_id)}/known"
