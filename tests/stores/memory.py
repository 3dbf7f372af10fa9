"""Storage in this process's memory, which tests open as ``memory://name``: not a folder, and quick."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from components.digests import sha256
from components.errors import NotFound
from components.storage.base import Dated, Entry, Storage, Unfinished, check_key, check_prefix, check_range, join
from components.storage.files import explained, whole_file

_lock = threading.Lock()
_places: dict[str, dict[str, bytes]] = {}


class MemoryStorage(Storage):
    """A storage in memory; all of one name in this process share it."""

    def __init__(self, name: str, prefix: str = "") -> None:
        self._name = name
        self._prefix = check_prefix(prefix)
        self.url = "memory://" + join(name, self._prefix)
        with _lock:
            self._objects = _places.setdefault(name, {})

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        return self._object(key)[start : None if length is None else start + length]

    def write(self, key: str, data: bytes) -> None:
        full = self._full(key)
        with _lock:
            self._objects[full] = bytes(data)

    def create(self, key: str, data: bytes) -> bool:
        full = self._full(key)
        with _lock:
            if full in self._objects:
                return False
            self._objects[full] = bytes(data)
            return True

    def upload(self, key: str, path: Path) -> None:
        with explained(f"read {path}"):
            data = path.read_bytes()
        self.write(key, data)

    def download(self, key: str, path: Path) -> None:
        data = self._object(key)
        with explained(f"write {path}"), whole_file(path) as file:
            file.write(data)

    def entry(self, key: str) -> Entry:
        data = self._object(key)
        return Entry(key, len(data), sha256(data))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        below = join(self._prefix, check_prefix(prefix))
        with _lock:
            found = sorted(item for item in self._objects.items() if not below or item[0].startswith(below + "/"))
        return (Entry(full.removeprefix(self._prefix + "/"), len(data), sha256(data)) for full, data in found)

    def list_dated(self, prefix: str = "") -> Iterator[Dated]:
        return (Dated(entry.key, entry.size, 0.0) for entry in self.list(prefix))

    def list_unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        check_prefix(prefix)
        return iter(())

    def discard(self, unfinished: Unfinished) -> None:
        check_key(unfinished.key)

    def delete(self, key: str) -> None:
        full = self._full(key)
        with _lock:
            self._objects.pop(full, None)

    def delete_tree(self, prefix: str) -> None:
        folder = check_key(check_prefix(prefix))
        for entry in self.list(folder):
            self.delete(entry.key)

    def child(self, prefix: str) -> MemoryStorage:
        return MemoryStorage(self._name, join(self._prefix, check_prefix(prefix)))

    def _full(self, key: str) -> str:
        return join(self._prefix, check_key(key))

    def _object(self, key: str) -> bytes:
        try:
            return self._objects[self._full(key)]
        except KeyError as error:
            raise NotFound(f"{key!r} does not exist in {self.url}") from error
