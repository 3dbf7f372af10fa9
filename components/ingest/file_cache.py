"""What earlier runs of ingest read from each file, so that an unchanged file is not read again.

A file is unchanged if its name, size and modification tag are the same, as in version control; a member of an archive
is unchanged if the archive is. The cache holds what the bytes say, never what the settings make of it, so new limits
apply without reading any file again. So it is kept by the place alone, in ``ingest/<place>``: runs on one source with
different settings share it, while each has records of its own. Two that write it at the same time may take parts of it
from each other: then files are read again, but no record is ever wrong, since each says which file it was read from.

The whole cache is in ``known/00000.jsonl`` and so on, sorted by name. While a run reads, it appends to a journal,
``known/new-00000.jsonl`` and so on; at its end the journal is merged into the cache. A run that is killed loses at most
what it read since the last part of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from components.errors import DataError, NotFound
from components.image.records import ingest_prefix
from components.storage.base import Storage

FORMAT = 4
ROWS_PER_PART = 50_000
UNUSED = "unused"


class FileRecord(NamedTuple):
    """What reading a file, or a member of an archive, gave.

    Attributes:
        name: Its name in the source.
        owner: The archive that holds it; the file itself if no archive does.
        tag: The owner's tag when it was listed.
        bytes: Its size.
        sha256: Digest of its bytes, if its name is that of an image.
        width: Pixels, upright; 0 if it is no image.
        height: Pixels, upright.
        format: Its image format, such as ``JPEG``; empty if it is no image.
        alpha: 1 if its pixels may be transparent, else 0.
        reason: Why it cannot be used; ``UNUSED`` for members that belong to no image: ``bytes`` is then their number.
        detail: Why, for a person.
        caption: Name of the caption that came with it in an archive; a caption's own name if it is one.
        caption_bytes: Size of that caption.
        text: The caption's text, if it was read.
        license: Licence that came with it.
        source: Where it came from.
        mask: Name of the mask that came with it in an archive.
        mask_bytes: Size of that mask.
    """

    name: str
    owner: str
    tag: str
    bytes: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    alpha: int = 0
    reason: str = ""
    detail: str = ""
    caption: str = ""
    caption_bytes: int = 0
    text: str | None = None
    license: str | None = None
    source: str | None = None
    mask: str = ""
    mask_bytes: int = 0


_DEFAULTS = tuple(FileRecord._field_defaults.get(name, object()) for name in FileRecord._fields)


def read_cache(workdir: Storage, place: str) -> Iterator[FileRecord]:
    """Yield what the last complete run wrote; a part that cannot be read is skipped, and its files are read again."""
    return _read(workdir, place, journal=False)


def read_journal(workdir: Storage, place: str) -> Iterator[FileRecord]:
    """Yield what an unfinished run has read."""
    return _read(workdir, place, journal=True)


def write_cache(workdir: Storage, place: str, records: Iterable[FileRecord]) -> None:
    """Replace the cache by these records, sorted by name; the journal stays."""
    records = iter(records)
    current: set[str] = set()
    while part := list(islice(records, ROWS_PER_PART)):
        key = f"{_folder(place)}/{len(current):05d}.jsonl"
        _write(workdir, key, part)
        current.add(key)
    for key in _keys(workdir, place):
        if key not in current and not _in_journal(key):
            workdir.delete(key)


class CacheJournal:
    """What the current run reads, saved part by part.

    Args:
        workdir: Where the records are.
        place: The source's ``id``, which is made from its URL.
    """

    def __init__(self, workdir: Storage, place: str) -> None:
        self._workdir = workdir
        self._place = place
        keys = [key for key in _keys(workdir, place) if _in_journal(key)]
        self._next = 1 + max((int(key[-11:-6]) for key in keys if key[-11:-6].isdecimal()), default=-1)

    def append(self, records: Sequence[FileRecord]) -> None:
        """Save some records as the next part."""
        _write(self._workdir, f"{_folder(self._place)}/new-{self._next:05d}.jsonl", records)
        self._next += 1


def remove_journal(workdir: Storage, place: str) -> None:
    """Remove the journal."""
    for key in _keys(workdir, place):
        if _in_journal(key):
            workdir.delete(key)


def _read(workdir: Storage, place: str, *, journal: bool) -> Iterator[FileRecord]:
    for key in _keys(workdir, place):
        if _in_journal(key) == journal:
            with suppress(NotFound, DataError, TypeError, KeyError):
                yield from _part(workdir, key)


def _part(workdir: Storage, key: str) -> list[FileRecord]:
    lines = workdir.read_records(key)
    if next(lines, None) != {"format": FORMAT}:
        return []
    return [FileRecord(**{"owner": values["name"], **values}) for values in lines]


def _write(workdir: Storage, key: str, records: Iterable[FileRecord]) -> None:
    workdir.write_records(key, [{"format": FORMAT}, *map(_values, records)])


def _values(record: FileRecord) -> dict[str, object]:
    """Return the fields that differ from their defaults."""
    values: dict[str, object] = {
        name: value
        for name, value, default in zip(FileRecord._fields, record, _DEFAULTS, strict=True)
        if value != default
    }
    if record.owner == record.name:
        del values["owner"]
    return values


def _keys(workdir: Storage, place: str) -> list[str]:
    return [entry.key for entry in workdir.list(_folder(place))]


def _in_journal(key: str) -> bool:
    return key.rpartition("/")[2].startswith("new-")


def _folder(place: str) -> str:
    return f"{ingest_prefix(place)}/known"
