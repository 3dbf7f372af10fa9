"""The interface to all files: a storage is a local folder or an S3-compatible store, and its users need not know which.

A storage maps keys to bytes. Keys are relative and ``/``-separated; a folder is only a common prefix of keys. Each
object is written whole or not at all. The keys of every listing are in the order of their code points, which is also
the order of their UTF-8 bytes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import DamagedFile, DataError, NotFound, StorageError
from components.storage.checksums import FIELD, with_checksum, with_last_line, without_checksum, without_last_line
from components.storage.scratch import scratch_folder

# Names that begin so are files that are being written, or that a killed writer left; they are never listed and no keys.
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
        written: Seconds since 1970 by the store's own clock; 0 if the store keeps no times.
    """

    key: str
    size: int
    written: float


class Unfinished(NamedTuple):
    """An unfinished write, of a writer that was killed or is still writing; ``Storage.list`` does not show it.

    Attributes:
        key: The object that it was to become, or the hidden file that it is.
        size: How many bytes of it are written.
        written: When it was begun or last written to, in seconds since 1970 by the store's own clock.
        token: The store's identifier of it.
    """

    key: str
    size: int
    written: float
    token: str


class Storage(ABC):
    """Maps keys to bytes.

    A key may contain anything but NUL, ``.`` and ``..`` as segments, and empty segments; so it never leads out of the
    storage. No key may be the folder of another. Every method raises ``StorageError`` if a key is not valid or the
    storage cannot be reached, with a message that says what to do, and ``NotFound`` if a key must exist and does not.

    Attributes:
        url: The address with which ``open_storage`` opens the same storage again.
    """

    url: str

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or ``length`` of them from ``start``, or fewer at its end.

        Raises:
            NotFound: If the key does not exist.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Write an object, whole or not at all; it replaces any that has the key."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists; of several writers at once, exactly one gets True."""

    @abstractmethod
    def upload(self, key: str, path: Path) -> None:
        """Write an object from a local file of any size, whole or not at all."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a local file, whole or not at all; missing folders are created.

        Raises:
            NotFound: If the key does not exist.
        """

    @abstractmethod
    def entry(self, key: str) -> Entry:
        """Return an object's size and version tag without its bytes.

        Raises:
            NotFound: If the key does not exist.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every object below a folder, at any depth, sorted by key; nothing if there is no such folder.

        Args:
            prefix: A folder, not the beginning of a name: ``runs/a`` does not list ``runs/ab``.
        """

    def list_all(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the same objects as ``list``, and those that other tools wrote under names that are no keys.

        Such an object can be named and not be read; ``check_key`` tells which they are. ``list`` raises for them, since
        there are none in what Darkroom wrote.
        """
        return self.list(prefix)

    @abstractmethod
    def list_dated(self, prefix: str = "") -> Iterator[Dated]:
        """Yield the same objects as ``list``, in the same order, with times of writing instead of version tags."""

    @abstractmethod
    def list_unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        """Yield the unfinished writes below a folder: hidden files, and uploads of which only parts arrived."""

    @abstractmethod
    def discard(self, unfinished: Unfinished) -> None:
        """Delete an unfinished write; if it is gone already, do nothing."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object; if the key does not exist, do nothing."""

    @abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Delete every object below a folder, one by one; first delete the object that makes readers trust the rest."""

    @abstractmethod
    def child(self, prefix: str) -> Storage:
        """Return the folder ``prefix`` of this storage as a storage of its own."""

    def local_path(self, key: str = "") -> Path | None:
        """Return the path of a key or folder (``""``: of the storage itself), or None if the storage is not local."""
        check_prefix(key)
        return None

    def exists(self, key: str) -> bool:
        """Tell whether an object has this key; a folder is not an object."""
        try:
            self.entry(key)
        except NotFound:
            return False
        return True

    def append(self, key: str, data: bytes) -> None:
        """Add bytes to the end of an object, which is created if it does not exist.

        Only one writer at a time may append to a key. Only a local folder can append: other stores write the whole
        object again in each call, so keep such objects small.
        """
        self.write(key, (self.read(key) if self.exists(key) else b"") + data)

    def read_json(self, key: str, *, must_have_checksum: bool = False) -> Any:
        """Return the value of a JSON file; the checksum of an object is checked, if it has one, and left out.

        An object without a checksum was written by an earlier version of Darkroom, or by hand.

        Args:
            key: Its key.
            must_have_checksum: Whether what has none is damaged, because nothing else shows that it is another file.

        Raises:
            NotFound: If the key does not exist.
            DamagedFile: If the bytes are not JSON, or an object's fields do not give its checksum.
        """
        value = self._parse(self.read(key), key)
        if not must_have_checksum and not (isinstance(value, dict) and FIELD in value):
            return value
        try:
            return without_checksum(value if isinstance(value, dict) else {})
        except ValueError as error:
            raise self._damage(key, f"{error}; delete it so that it is written again, or only its {FIELD} if you "
                               "changed it yourself") from None  # fmt: skip

    def read_object(self, key: str, *fields: str) -> dict[str, Any]:
        """Return the value of a JSON file that holds an object.

        Args:
            key: Its key.
            fields: Names that it must have.

        Raises:
            NotFound: If the key does not exist.
            DamagedFile: As `read_json`; also if it is no object, or lacks a field.
        """
        value = self.read_json(key)
        missing = [name for name in fields if name not in value] if isinstance(value, dict) else fields
        if not isinstance(value, dict) or missing:
            problem = f"it has no {', '.join(missing)}" if missing else "it is no JSON object"
            raise self._damage(key, f"{problem}; delete it so that it is written again")
        return value

    def write_json(self, key: str, value: Any) -> None:
        """Write a value as JSON for people: indented, sorted, ASCII; an object gets a checksum."""
        checked = with_checksum(value) if isinstance(value, Mapping) else value
        self.write(key, json.dumps(checked, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")

    def read_lines(self, key: str) -> Iterator[dict[str, Any]]:
        """Return an iterator over the records of a JSON Lines object.

        Raises:
            NotFound: If the key does not exist; at once, not when the first record is asked for.
            DataError: If a line is not a JSON object; when it is reached.
        """
        return self._records(self.read(key), key)

    def write_lines(self, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write records as JSON Lines, with the fields in their own order; many go through a temporary file."""
        self._write_parts(key, (_line(record) for record in records))

    def read_records(self, key: str) -> Iterator[dict[str, Any]]:
        """Return an iterator over the records of JSON Lines that `write_records` has written.

        Raises:
            NotFound: If the key does not exist; at once, not when the first record is asked for.
            DamagedFile: If they are not what was written; at once, too.
        """
        try:
            lines = without_last_line(self.read(key))
        except ValueError as error:
            raise self._damage(key, f"{error}; delete it and start again, so that it is written anew") from None
        return self._records(lines, key)

    def write_records(self, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON Lines to which nothing will be added: they end in a line with a checksum of all others."""
        self._write_parts(key, with_last_line(_line(record) for record in records))

    def _write_parts(self, key: str, parts: Iterator[bytes]) -> None:
        first = list(islice(parts, LINES_IN_MEMORY))
        if len(first) < LINES_IN_MEMORY:
            self.write(key, b"".join(first))
            return
        with scratch_folder("lines") as folder:
            path = folder / "lines.jsonl"
            with path.open("wb") as file:
                file.writelines(first)
                file.writelines(parts)
            self.upload(key, path)

    def append_lines(self, key: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records to the end of a JSON Lines object; ``append`` says what that costs."""
        self.append(key, b"".join(map(_line, records)))

    def _records(self, data: bytes, key: str) -> Iterator[dict[str, Any]]:
        # Bytes, since str.splitlines() would also split at separators that JSON strings may contain.
        lines = data.splitlines()
        return (self._record(line, f"{key}:{number}") for number, line in enumerate(lines, start=1) if line)

    def _record(self, line: bytes, location: str) -> dict[str, Any]:
        record = self._parse(line, location)
        if not isinstance(record, dict):
            raise DataError(f"{location} in {self.url} is a JSON {type(record).__name__}, expected an object in {{}}")
        return record

    def _parse(self, data: bytes, location: str) -> Any:
        try:
            return json.loads(data.decode())
        except (ValueError, RecursionError) as error:  # bytes that are not UTF-8, or text that is not JSON
            message = f"{location!r} in {self.url} is not JSON ({error}); delete it so that it is written again"
            raise DamagedFile(message) from error

    def _damage(self, key: str, problem: str) -> DamagedFile:
        return DamagedFile(f"{key!r} in {self.url} is damaged: {problem}")


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
            problem = f"the segment {segment!r}" if segment else "an empty segment"
            raise StorageError(
                f"{key!r} is not a key: it has {problem}; "
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
    """Check which part of an object is to be read.

    Raises:
        StorageError: If the start or the length is negative.
    """
    if start < 0 or (length is not None and length < 0):
        raise StorageError(f"cannot read {length} bytes from {start}: neither may be negative")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
