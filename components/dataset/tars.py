"""Where the bytes of a shard's tar come from: a mapped file, memory, or one ranged request per sample.

A local tar is mapped: nothing is copied until a sample is, and what was read stays in the system's page cache for all
processes of the machine. Tars are named for their content and never change in place; one that were cut short while
mapped would end the process with SIGBUS, which is why its size is compared when it is opened.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from typing import BinaryIO, Protocol

from components.errors import DataError
from components.storage.base import Storage
from components.storage.files import explained

WHAT_TO_DO = "delete it and run latents and index again"


class Tar(Protocol):
    """The bytes of one tar.

    Attributes:
        whole: All of them, where they are at hand; None where each part is a request of its own.
    """

    whole: memoryview | None

    def part(self, start: int, size: int) -> memoryview:
        """Return some bytes; past the end there are just fewer."""


# Opens the tar under a key of a storage, which must have a size and a SHA-256; the latter is checked if the last
# argument says so. Raises NotFound, and DataError where it is another one.
OpenTar = Callable[[Storage, str, int, str, bool], Tar]


class WholeTar:
    """A tar whose bytes are in memory, or mapped into it."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.whole: memoryview | None = memoryview(data)
        self._data = self.whole

    def part(self, start: int, size: int) -> memoryview:
        """Return some bytes without copying them."""
        return self._data[start : start + size]


class RangedTar:
    """A tar in a storage, of which only what is asked for is read."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.whole: memoryview | None = None
        self._storage = storage
        self._key = key

    def part(self, start: int, size: int) -> memoryview:
        """Read some bytes."""
        return memoryview(self._storage.read(self._key, start, size))


def open_whole(storage: Storage, key: str, size: int, sha256: str, verify: bool) -> WholeTar:
    """Map a local tar, or load another one into memory."""
    path = storage.local_path(key)
    if path is None:
        data = storage.read(key)
        check_size(key, len(data), size)
        tar = WholeTar(data)
    else:
        check_size(key, storage.entry(key).size, size)
        with explained(f"read {path}"), path.open("rb") as file:
            tar = map_tar(file)
    if verify:
        check_digest(key, hashlib.sha256(tar.part(0, size)).hexdigest(), sha256)
    return tar


def open_ranged(storage: Storage, key: str, size: int, sha256: str, verify: bool) -> RangedTar:  # noqa: ARG001
    """Open a tar without reading it; its digest, which would take all of it, is not checked."""
    check_size(key, storage.entry(key).size, size)
    return RangedTar(storage, key)


def map_tar(file: BinaryIO) -> WholeTar:
    """Map a file that holds a tar, and so is not empty."""
    return WholeTar(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check_size(key: str, found: int, expected: int) -> None:
    """Check a tar's size.

    Raises:
        DataError: Where it is another, or nothing.
    """
    if found != expected or found == 0:
        raise DataError(f"{key} is damaged: it has {found} bytes, expected {expected}; {WHAT_TO_DO}")


def check_digest(key: str, found: str, expected: str) -> None:
    """Check a tar's SHA-256, as 64 hex digits.

    Raises:
        DataError: Where it is another.
    """
    if found != expected:
        raise DataError(f"{key} is damaged: its digest is {found[:16]}…, expected {expected[:16]}…; {WHAT_TO_DO}")
