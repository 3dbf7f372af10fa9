"""A storage that asks for leave before each change."""

# ruff: noqa: D102 - Storage documents its methods
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from components.storage.base import Dated, Entry, Storage, Unfinished


class GuardedStorage(Storage):
    """The same objects as another storage has; each change is preceded by a check, whose exception prevents it.

    Args:
        storage: The storage.
        check: Called before each change.
    """

    def __init__(self, storage: Storage, check: Callable[[], object]) -> None:
        self._storage = storage
        self._check = check
        self.url = storage.url

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._storage.read(key, start, length)

    def write(self, key: str, data: bytes) -> None:
        self._check()
        self._storage.write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._check()
        return self._storage.create(key, data)

    def upload(self, key: str, path: Path) -> None:
        self._check()
        self._storage.upload(key, path)

    def download(self, key: str, path: Path) -> None:
        self._storage.download(key, path)

    def append(self, key: str, data: bytes) -> None:
        self._check()
        self._storage.append(key, data)

    def entry(self, key: str) -> Entry:
        return self._storage.entry(key)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return self._storage.list(prefix)

    def list_dated(self, prefix: str = "") -> Iterator[Dated]:
        return self._storage.list_dated(prefix)

    def list_unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        return self._storage.list_unfinished(prefix)

    def discard(self, unfinished: Unfinished) -> None:
        self._check()
        self._storage.discard(unfinished)

    def delete(self, key: str) -> None:
        self._check()
        self._storage.delete(key)

    def delete_tree(self, prefix: str) -> None:
        self._check()
        self._storage.delete_tree(prefix)

    def child(self, prefix: str) -> Storage:
        return GuardedStorage(self._storage.child(prefix), self._check)

    def local_path(self, key: str = "") -> Path | None:
        return self._storage.local_path(key)
