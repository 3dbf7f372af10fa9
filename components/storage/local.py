"""Storage in a local folder: files appear whole, listings are streamed, errors say what to do."""

# ruff: noqa: D102 - Storage documents its methods
from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from components.errors import NotFound, StorageError
from components.storage.base import (
    HIDDEN,
    Dated,
    Entry,
    Storage,
    Unfinished,
    check_key,
    check_prefix,
    check_range,
    join,
)
from components.storage.files import NO_SUCH_FILE, explained, whole_file

# A hidden file this much older than one just written was left by a writer that was killed: one day, in nanoseconds.
ABANDONED_NS = 24 * 3600 * 10**9
COPY_BYTES = 1 << 20


class LocalStorage(Storage):
    """A local folder, which is created when something is first written.

    Links to files are read and listed as the files they point to. Keys may lead through a folder that is a link; but
    listings do not follow such links, so that they end and do not leave their folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._tidied: set[Path] = set()
        self.url = str(self._root)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        with self._reading(key) as path, path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with explained(f"write {path}"), whole_file(path) as file:
            file.write(data)
        self._tidy(path)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with explained(f"create {path}"):
            try:
                with whole_file(path, rename=_link) as file:
                    file.write(data)
            except FileExistsError:
                if path.is_dir() or not path.parent.is_dir():  # a folder or a file is in the way, not this object
                    raise
                return False
        self._tidy(path)
        return True

    def upload(self, key: str, path: Path) -> None:
        target = self._path(key)
        with explained(f"copy {path} to {target}"), path.open("rb") as source, whole_file(target) as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
        self._tidy(target)

    def download(self, key: str, path: Path) -> None:
        with self._reading(key) as source_path:
            source = source_path.open("rb")
        with source, explained(f"copy {source_path} to {path}"), whole_file(path) as file:
            shutil.copyfileobj(source, file, COPY_BYTES)

    def append(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with explained(f"append to {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                _append(file, data)

    def entry(self, key: str) -> Entry:
        with self._reading(key) as path:
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"{key!r} in {self.url} is not a file")
        return Entry(key, status.st_size, str(status.st_mtime_ns))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return self._walk(check_prefix(prefix))

    def list_dated(self, prefix: str = "") -> Iterator[Dated]:
        return (Dated(entry.key, entry.size, int(entry.modified) / 1e9) for entry in self.list(prefix))

    def list_unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        top = self.local_path(prefix)
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(name for name in names if name.startswith(HIDDEN)):
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # it has become an object meanwhile
                    status = path.lstat()
                    key = path.relative_to(self._root).as_posix()
                    yield Unfinished(key, status.st_size, status.st_mtime, token=key)

    def discard(self, unfinished: Unfinished) -> None:
        folder, _, name = unfinished.token.rpartition("/")
        assert name.startswith(HIDDEN), "only hidden files are unfinished"
        path = self.local_path(folder) / name
        with explained(f"delete {path}"):
            path.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with explained(f"delete {path}"), suppress(FileNotFoundError, NotADirectoryError):
            if not path.is_dir() or path.is_symlink():
                path.unlink()

    def delete_tree(self, prefix: str) -> None:
        path = self._path(check_prefix(prefix))
        with explained(f"delete {path}"):
            while path.is_dir():
                if path.is_symlink():  # the folder that it points to is not part of this storage
                    path.unlink()
                else:
                    with suppress(FileNotFoundError):  # another process deletes here too; try again
                        shutil.rmtree(path)

    def child(self, prefix: str) -> LocalStorage:
        return LocalStorage(self.local_path(prefix))

    def local_path(self, key: str = "") -> Path:
        folder = check_prefix(key)
        return self._path(folder) if folder else self._root

    def _path(self, key: str) -> Path:
        check_key(key)
        try:
            os.fsencode(key)
        except UnicodeEncodeError as error:
            raise StorageError(f"{key!r} cannot be a file name: {error.reason}; use valid Unicode") from error
        return self._root / key

    @contextmanager
    def _reading(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        with explained(f"read {path}"):
            try:
                yield path
            except OSError as error:
                if error.errno in NO_SUCH_FILE:
                    raise NotFound(f"{key!r} does not exist in {self.url}") from error
                raise

    def _walk(self, top: str) -> Iterator[Entry]:
        pending = self._names(top)
        while pending:
            key = pending.pop()
            if key.endswith("/"):
                pending.extend(self._names(key[:-1]))
            else:
                try:
                    entry = self.entry(key)
                except NotFound:  # deleted since its folder was read, or a link to a missing file
                    continue
                yield entry

    def _names(self, folder: str) -> _Names:
        """Return a folder's keys, last first; subfolders end in a slash, so that all keys below them sort correctly."""
        path = self._root / folder
        with explained(f"list {path}"):
            try:
                with os.scandir(path) as entries:
                    names = [entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries]
            except FileNotFoundError:
                return []
            except NotADirectoryError:
                if folder:
                    return []
                raise
        return sorted((join(folder, name) for name in names if not name.startswith(HIDDEN)), reverse=True)

    def _tidy(self, written: Path) -> None:
        """Delete old hidden files that killed writers left beside a file just written, once per folder.

        Their age is taken relative to that file's own time, so no clocks of two machines are compared.
        """
        if written.parent in self._tidied:
            return
        self._tidied.add(written.parent)
        with suppress(OSError):
            abandoned = written.stat().st_mtime_ns - ABANDONED_NS
            for path in written.parent.glob(HIDDEN + "*"):
                if path.stat().st_mtime_ns < abandoned:
                    path.unlink(missing_ok=True)


def _link(hidden: Path, path: Path) -> None:
    """Give a hidden file a second name, which fails if that exists.

    On a file system without links the name is created first; then a reader may for a moment see only a part.
    """
    try:
        os.link(hidden, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with path.open("xb") as file:
            file.write(hidden.read_bytes())


_Names = list[str]  # inside the class, "list" is the method


def _append(file: FileIO, data: bytes) -> None:
    end = file.tell()
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(end)  # half a record would damage the whole object
        raise
