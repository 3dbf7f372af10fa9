"""Copies of remote shards on this node's disk: each is fetched once, checked once, and then mapped.

All processes of a node share the folder. A copy is named by its digest and gets its name when it is whole and checked,
so every named file that this user has written can be used. A file that a process still maps may be deleted: the system
keeps its bytes until the last process unmaps it. A file lock, which ends with its process, only keeps several ranks
from the same download at the same moment; on a disk without locks nothing breaks.
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

# A partial download that has not grown for this long belongs to a dead process: one hour, in nanoseconds.
_ABANDONED_NS = 3600 * 10**9
# Opening a copy fails if another process deletes it at that moment; if the open windows fit, hardly ever twice.
_ATTEMPTS = 5


class ShardCache:
    """A folder of copies, the least recently opened of which are deleted when it grows beyond its limit.

    Args:
        folder: The folder of the copies; created if missing. It may be shared with other trainings.
        limit: Size limit of all copies, in bytes. It should hold two windows of shards: those that are read now and
            those that are fetched meanwhile.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def open(self, storage: Storage, key: str, size: int, sha256: str, verify: bool) -> WholeTar:
        """Open a tar: a local one in place, any other from its copy, which is downloaded if missing.

        Args:
            storage: The storage that holds the tar.
            key: Its key there.
            size: Its length in bytes.
            sha256: Its digest.
            verify: Whether to check the digest of what is fetched; a copy was checked before it got its name.

        Raises:
            NotFound: If the tar does not exist.
            DataError: If its size or digest is wrong.
            ConfigError: If it is larger than the cache.
        """
        if storage.local_path(key) is not None:
            return open_whole(storage, key, size, sha256, verify)
        if size > self._limit:
            raise ConfigError(
                f"{key} has {size} bytes and the cache may hold {self._limit}; raise train.data.cache_gib to more than "
                "two windows of shards, or set train.data.remote_shards=range"
            )
        # An unchecked copy must not be mistaken for a checked one.
        copy = self._folder / f"{sha256}{'' if verify else '.unchecked'}.tar"
        with explained(f"cache a shard in {self._folder}"):
            for _ in range(_ATTEMPTS):
                with suppress(FileNotFoundError):
                    return self._map(copy, size)
                self._fetch(storage, key, size, sha256 if verify else None, copy)
            return self._map(copy, size)

    def _map(self, copy: Path, size: int) -> WholeTar:
        with copy.open("rb") as file:
            status = os.fstat(file.fileno())
            # Another size: after a power cut, or changed by hand. Another owner: nobody here has checked it.
            if status.st_size != size or status.st_uid != os.getuid():
                copy.unlink(missing_ok=True)
                raise FileNotFoundError(copy)
            os.utime(copy)  # it is now the most recently used
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
        """Download a tar and check it; once more if it is wrong, since the network may have been at fault."""
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
        """Delete the least recently opened copies until ``size`` more bytes fit, and abandoned downloads."""
        copies, total = [], size
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".tar":
                    copies.append((status.st_mtime_ns, path, status.st_size))
                elif path.name.startswith(HIDDEN) and status.st_mtime_ns < now - _ABANDONED_NS:
                    path.unlink()
                    continue
                total += status.st_size
        for _, path, freed in sorted(copies):
            if total <= self._limit:
                break
            path.unlink(missing_ok=True)
            total -= freed

    @contextmanager
    def _alone(self, copy: Path) -> Iterator[int]:
        """Wait until no other process fetches this copy, if the disk has locks; yield the disk's own time."""
        path = copy.with_suffix(".lock")
        with path.open("wb") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                os.utime(file.fileno())
                yield os.fstat(file.fileno()).st_mtime_ns
            finally:
                path.unlink(missing_ok=True)
