"""Copies of remote shards on this machine's disk: each is fetched once, checked once, and then mapped.

All processes of a machine share the folder. A copy is named for its digest and gets its name when it is whole and
checked, so what has a name can be used, and a file that somebody still maps may be deleted under them: the system keeps
its bytes until the last one lets go. A lock of the system's, which dies with its process, only spares several ranks
the same download at the same moment; nothing breaks where a disk knows no locks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.dataset.tars import WholeTar, check_digest, check_size, map_tar, open_whole
from components.digests import digest_file
from components.errors import ConfigError, DataError
from components.storage.base import HIDDEN, Storage
from components.storage.files import explained

# A download that nobody has added to for so long was its process's last: one hour, in nanoseconds.
_ABANDONED_NS = 3600 * 10**9
# Opening a copy fails where another process deletes it just then: with room for the open windows, hardly ever twice.
_ATTEMPTS = 5


class ShardCache:
    """A folder of copies, the least recently opened of which are deleted when it grows beyond its bound.

    Args:
        folder: Where the copies are; made where it is missing. It may be shared with other trainings.
        limit: Most bytes that the copies may take. It should hold two windows of shards: those that are read now and
            those that are fetched meanwhile.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def open(self, storage: Storage, key: str, size: int, sha256: str, verify: bool) -> WholeTar:
        """Open a tar: a local one where it is, any other from its copy, which is made where it is missing.

        Args:
            storage: Where the tar lies.
            key: Its key there.
            size: Its length in bytes.
            sha256: Its digest.
            verify: Whether to check the digest of what is fetched; a copy was checked before it got its name.

        Raises:
            NotFound: Where there is no such tar.
            DataError: Where it is another one.
            ConfigError: Where it is larger than the cache.
        """
        if storage.local_path(key) is not None:
            return open_whole(storage, key, size, sha256, verify)
        if size > self._limit:
            raise ConfigError(
                f"{key} has {size} bytes and the cache may hold {self._limit}; raise train.data.cache_gib to more than "
                "two windows of shards, or set train.data.remote_shards=range"
            )
        # A copy that nobody checked must not be taken for one that somebody did.
        copy = self._folder / f"{sha256}{'' if verify else '.unchecked'}.tar"
        with explained(f"cache a shard in {self._folder}"):
            for _ in range(_ATTEMPTS):
                with suppress(FileNotFoundError):
                    return self._map(copy, size)
                self._fetch(storage, key, size, sha256 if verify else None, copy)
            return self._map(copy, size)

    def _map(self, copy: Path, size: int) -> WholeTar:
        with copy.open("rb") as file:
            os.utime(copy)  # it is now the most recently used
            if os.fstat(file.fileno()).st_size != size:  # a power cut, or somebody's hand
                copy.unlink(missing_ok=True)
                raise FileNotFoundError(copy)
            return map_tar(file)

    def _fetch(self, storage: Storage, key: str, size: int, sha256: str | None, copy: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone(copy) as now:
            if copy.exists():  # another process has fetched it while this one waited
                return
            self._make_room(size, now)
            partial = self._folder / f"{HIDDEN}{secrets.token_hex(8)}"
            try:
                self._download(storage, key, size, sha256, partial)
                partial.replace(copy)
            finally:
                partial.unlink(missing_ok=True)

    def _download(self, storage: Storage, key: str, size: int, sha256: str | None, path: Path) -> None:
        """Download a tar and check it; once more where it does not hold, for the fault may be the network's."""
        for attempt in (1, 2):
            storage.download(key, path)
            try:
                check_size(key, path.stat().st_size, size)
                if sha256 is not None:
                    check_digest(key, digest_file(path), sha256)
                return
            except DataError:
                if attempt == 2:
                    raise

    def _make_room(self, size: int, now: int) -> None:
        """Delete the least recently opened copies until ``size`` more bytes fit, and what killed downloads left."""
        copies, total = [], size
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                if path.suffix == ".tar":
                    copies.append((found.st_mtime_ns, path, found.st_size))
                elif path.name.startswith(HIDDEN) and found.st_mtime_ns < now - _ABANDONED_NS:
                    path.unlink()
                    continue
                total += found.st_size
        for _, path, freed in sorted(copies):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= freed

    @contextmanager
    def _alone(self, copy: Path) -> Iterator[int]:
        """Wait until no other process fetches this copy, if the disk has locks; give the time by the disk's clock."""
        path = copy.with_suffix(".lock")
        with path.open("wb") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                os.utime(file.fileno())
                yield os.fstat(file.fileno()).st_mtime_ns
            finally:
                path.unlink(missing_ok=True)
