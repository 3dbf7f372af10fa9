"""The one seam to where bytes live: a local folder or an S3-compatible store. Nothing above it knows which.

A storage maps keys to bytes. Keys are relative and ``/``-separated; folders are only what keys have in common. Each
object is written whole or not at all, and the keys of a listing are in the order of their code points, which is also
the order of their UTF-8 bytes, everywhere.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import DataError, NotFound, StorageError

# Names that begin so are files in the making, or what a killed writer left; they are never listed and never keys.
HIDDEN = ".darkroom-tmp-"

LINES_IN_MEMORY = 100_000


class Entry(NamedTuple):
    """One object of a listing.

    Attributes:
        key: The object's key, relative to the storage that listed it.
        size: Its length in bytes.
        modified: An opaque tag that changes when the object does (a local modification time, an ETag).
    """

    key: str
    size: int
    modified: str


class Dated(NamedTuple):
    """One object of a listing, and when it was written.

    Attributes:
        key: The object's key, relative to the storage that listed it.
        size: Its length in bytes.
        written: Seconds since 1970 by the store's own clock; 0 where the store knows no times.
    """

    key: str
    size: int
    written: float


class Unfinished(NamedTuple):
    """What a writer that was killed left behind, or one that still writes; no listing shows it.

    Attributes:
        key: The object that it was to become, or the hidden file that it is.
        size: How many bytes of it there are.
        written: When it was begun or last written to, in seconds since 1970 by the store's own clock.
        token: What the store knows it by.
    """

    key: str
    size: int
    written: float
    token: str


class Storage(ABC):
    """A place that maps keys to bytes.

    A key may hold anything but NUL, ``.`` and ``..`` as segments, and empty segments; so it never leads out of the
    storage. No key may be the folder of another. Every method raises ``StorageError`` for a key that is not valid or
    a place that cannot be reached, with a message that says what to do, and where a key must exist, ``NotFound``.

    Attributes:
        url: What ``open_storage`` takes to open the same place again.
    """

    url: str

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or ``length`` of them from ``start``; past its end there are just fewer.

        Raises:
            NotFound: Where the key does not exist.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all, in the place of any that has the key."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write an object only where the key is free; of several who try, exactly one is told True."""

    @abstractmethod
    def upload(self, key: str, path: Path) -> None:
        """Write an object from a local file of any size, whole or not at all."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a local file, whole or not at all; its folder is made where it is missing.

        Raises:
            NotFound: Where the key does not exist.
        """

    @abstractmethod
    def entry(self, key: str) -> Entry:
        """Return an object's size and version tag without its bytes.

        Raises:
            NotFound: Where the key does not exist.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every object below a folder, at any depth, sorted by key; nothing where there is no such folder.

        Args:
            prefix: A folder, not the beginning of a name: ``runs/a`` does not list ``runs/ab``.
        """

    @abstractmethod
    def list_dated(self, prefix: str = "") -> Iterator[Dated]:
        """Yield what ``list`` does, in the same order, with times of writing in the place of version tags."""

    @abstractmethod
    def list_unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Yield what writers left unfinished below a folder: hidden files, uploads of which only parts arrived."""

    @abstractmethod
    def discard(self, unfinished: Unfinished) -> None:
        """Delete what a writer left unfinished; where it is gone there is nothing to do."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object; where the key does not exist there is nothing to do."""

    @abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Delete every object below a folder, one by one: first delete what makes readers trust the rest."""

    @abstractmethod
    def child(self, prefix: str) -> Storage:
        """Return the folder ``prefix`` of this storage as a storage of its own."""

    def local_path(self, key: str = "") -> Path | None:
        """Return the path of a key or folder (the storage itself for ``""``), or None where the place is not local."""
        check_prefix(key)
        return None

    def exists(self, key: str) -> bool:
        """Return whether an object has this key; a folder is not an object."""
        try:
            self.entry(key)
        except NotFound:
            return False
        return True

    def append(self, key: str, data: bytes) -> None:
        """Add bytes to the end of an object, which is made where it is missing.

        There must be one writer at a time per key. Stores other than a local folder cannot append, so each call
        writes the object anew: keep such objects small.
        """
        self.write(key, (self.read(key) if self.exists(key) else b"") + data)

    def read_json(self, key: str) -> Any:
        """Return the value of a JSON object.

        Raises:
            NotFound: Where the key does not exist.
            DataError: Where the bytes are not JSON.
        """
        return self._parse(self.read(key), key)

    def write_json(self, key: str, value: Any) -> None:
        """Write a value as JSON for people: indented, sorted, ASCII."""
        self.write(key, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")

    def read_lines(self, key: str) -> Iterator[dict[str, Any]]:
        """Return the records of a JSON Lines object, parsed one by one.

        Raises:
            NotFound: Where the key does not exist; at once, not when the first record is asked for.
            DataError: Where a line is not a JSON object; when it is reached.
        """
        # Bytes are split, since a str would also be split at separators that JSON strings may hold.
        lines = self.read(key).splitlines()
        return (self._record(line, f"{key}:{number}") for number, line in enumerate(lines, start=1) if line)

    def write_lines(self, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records as JSON Lines, their fields in the order they come in; many go through a temporary file."""
        lines = (_line(record) for record in records)
        first = list(islice(lines, LINES_IN_MEMORY))
        if len(first) < LINES_IN_MEMORY:
            self.write(key, b"".join(first))
            return
        with tempfile.NamedTemporaryFile(prefix="darkroom-lines-") as file:
            file.writelines(first)
            file.writelines(lines)
            file.flush()
            self.upload(key, Path(file.name))

    def append_lines(self, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records to the end of a JSON Lines object; ``append`` says what that costs."""
        self.append(key, b"".join(map(_line, records)))

    def _record(self, line: bytes, where: str) -> dict[str, Any]:
        record = self._parse(line, where)
        if not isinstance(record, dict):
            raise DataError(f"{where} in {self.url} is a JSON {type(record).__name__}, expected an object in {{}}")
        return record

    def _parse(self, data: bytes, where: str) -> Any:
        try:
            return json.loads(data.decode())
        except ValueError as error:  # bytes that are not UTF-8, or text that is not JSON
            message = f"{where!r} in {self.url} is not JSON ({error}); delete it so that it is made again"
            raise DataError(message) from error


def join(prefix: str, key: str) -> str:
    """Return ``key`` below ``prefix``; either may be empty."""
    return f"{prefix}/{key}" if prefix and key else prefix or key


def check_key(key: str) -> str:
    """Return a valid key unchanged.

    Raises:
        StorageError: For a key that is empty, absolute, could lead out of its storage, or has a reserved name.
    """
    for segment in key.split("/"):
        if segment in ("", ".", "..") or "\0" in segment or segment.startswith(HIDDEN):
            found = "an empty segment" if not segment else f"the segment {segment!r}"
            raise StorageError(
                f"{key!r} is not a key: it has {found}; "
                f"expected names joined by '/', without '.', '..', NUL and names that begin with {HIDDEN}"
            )
    return key


def check_prefix(prefix: str) -> str:
    """Return a folder without its trailing slash; an empty one means the whole storage.

    Raises:
        StorageError: For a folder that is not a valid key.
    """
    folder = prefix.removesuffix("/")
    return check_key(folder) if folder or prefix else ""


def check_range(start: int, length: int | None) -> None:
    """Check what part of an object is asked for.

    Raises:
        StorageError: Where the start or the length is negative.
    """
    if start < 0 or (length is not None and length < 0):
        raise StorageError(f"cannot read {length} bytes from {start}: neither may be negative")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
