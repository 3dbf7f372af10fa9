"""Opens a shard's tar: as a mapped file, in memory, or with one ranged request per sample.

A local tar is mapped: nothing is copied until a sample is, and what was read stays in the system's page cache for all
processes of the node. Tars are named by their content and never change in place. If a mapped file were shorter than
expected, reading past its end would kill the process with SIGBUS; so its size is compared when it is opened.
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
        whole: All bytes, if they are in memory or mapped; None if each part is a request of its own.
    """

    whole: memoryview | None

    def part(self, start: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``start``, or fewer at the end of the tar."""


# Opens a tar, given storage, key, size, SHA-256 and whether to check the SHA-256. Raises NotFound if there is no such
# tar, and DataError if its size or its checked SHA-256 is another.
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
    """A tar in a storage, of which only the requested parts are read."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.whole: memoryview | None = None
        self._storage = storage
        self._key = key

    def part(self, start: int, size: int) -> memoryview:
        """Read some bytes."""
        return memoryview(self._storage.read(self._key, start, size))


def open_whole(storage: Storage, key: str, size: int, sha256: str, verify: bool) -> WholeTar:
    """Map a tar if it is local, else load it into memory."""
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
    """Open a tar without reading it; its digest is not checked, since that would take reading all of it."""
    check_size(key, storage.entry(key).size, size)
    return RangedTar(storage, key)


def map_tar(file: BinaryIO) -> WholeTar:
    """Map a file that contains a tar, and so is not empty."""
    return WholeTar(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def check_size(key: str, size: int, expected: int) -> None:
    """Check a tar's size.

    Raises:
        DataError: If it differs from the expected one, or is 0.
    """
    if size != expected or size == 0:
        raise DataError(f"{key} is damaged: it has {size} bytes, expected {expected}; {WHAT_TO_DO}")


def check_digest(key: str, sha256: str, expected: str) -> None:
    """Check a tar's SHA-256, as 64 hex digits.

    Raises:
        DataError: If it differs from the expected one.
    """
    if sha256 != expected:
        raise DataError(f"{key} is damaged: its digest is {sha256[:16]}…, expected {expected[:16]}…; {WHAT_TO_DO}")
