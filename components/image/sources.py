"""Where images come from: a local folder or an object store, read and never written to.

A source is hostile ground. Links may lead out of the folder, a name ending in ``.jpg`` may be a pipe that blocks for
ever, a file may vanish between listing and reading: each is refused by name, and the rest is read.

A member of a tar has a name of its own, ``shards/00000.tar//000001.jpg@1536+20480``: the file, two slashes (which no
file's name holds), the member's name in the archive, and where its bytes lie, from byte 1536 on and 20,480 of them. So
one ranged request reads it, nobody looks for it in an index, and nothing is ever unpacked.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from components.digests import short
from components.errors import DataError, ImageRejected, NotFound, StorageError
from components.storage.base import Storage, check_key
from components.storage.open import open_storage

# The machine's trouble and not the file's: a retry may help, and no image must be given up for it.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR}

# Between the name of an archive and that of its member; no file below a source has an empty part in its name.
_INSIDE = "//"

_Names = list[str]  # inside the classes, "list" is the method


class SourceFile(NamedTuple):
    """One file of a source.

    Attributes:
        name: Its path below the source, with ``/`` between the parts. Bytes that are not UTF-8 are lone surrogates.
        size: Bytes.
        modified: An opaque tag that changes when the file does; empty where none is known.
        refused: Why it is not to be read, where the listing shows that already. A folder that cannot be listed is
            told of in this way, with a slash at the end of its name.
    """

    name: str
    size: int
    modified: str
    refused: ImageRejected | None = None


class Member(NamedTuple):
    """Where the bytes of an archive's member lie.

    Attributes:
        archive: The archive's name in the source.
        start: Its first byte in the archive.
        size: How many bytes it has.
    """

    archive: str
    start: int
    size: int


def member_name(archive: str, member: str, start: int, size: int) -> str:
    """Return the name by which a source reads an archive's member; see the module's docstring."""
    return f"{archive}{_INSIDE}{member}@{start}+{size}"


def parse_member(name: str) -> Member | None:
    """Return where a member's bytes lie, or None for the name of a file."""
    archive, inside, rest = name.partition(_INSIDE)
    if not inside:
        return None
    start, plus, size = rest.rpartition("@")[2].partition("+")
    if not (plus and start.isdecimal() and size.isdecimal()):
        raise ImageRejected("unreadable", f"{name!a} does not say where in the archive its bytes are; run ingest again")
    return Member(archive, int(start), int(size))


class Source(ABC):
    """A place full of files.

    Attributes:
        url: Where it is, absolute.
    """

    url: str

    @property
    def id(self) -> str:
        """The name under which a workdir keeps what it knows of this source: made from the URL."""
        return short(self.url)

    @abstractmethod
    def list(self) -> Iterator[SourceFile]:
        """Yield every file below the source, sorted by name; hidden ones (``.name``) are passed over.

        Raises:
            DataError: Where the source itself cannot be listed.
            StorageError: Where the storage fails; a retry may help.
        """

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file, or of a member of an archive.

        Args:
            name: As the listing, or `member_name`, has it.
            start: The first byte wanted.
            length: How many are wanted; None for all that follow. Past the end there are just fewer.

        Raises:
            ImageRejected: ``unreadable`` or ``symlink-outside``.
            StorageError: Where the storage fails; a retry may help.
        """
        member = parse_member(name)
        if member is None:
            return self._read(name, start, length)
        wanted = max(0, member.size - start if length is None else min(length, member.size - start))
        data = self._read(member.archive, member.start + start, wanted)
        if len(data) < wanted:
            raise ImageRejected("unreadable", f"{member.archive!a} has become shorter; run ingest again")
        return data

    @abstractmethod
    def _read(self, name: str, start: int, length: int | None) -> bytes:
        """Return the bytes of a file, as ``read`` says."""


def open_source(url: str) -> Source:
    """Open a source: a local folder (also ``file://``) or ``s3://bucket/prefix``.

    Raises:
        DataError: Where there is no such folder.
        ConfigError: For an address of another kind.
    """
    storage = open_storage(url)
    folder = storage.local_path()
    return FolderSource(folder) if folder is not None else StorageSource(storage)


class FolderSource(Source):
    """A local folder, read recursively. Links to files inside it are followed, links to folders are not.

    Raises:
        DataError: Where there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        # Absolute, not resolved: a link that is turned to a new version of the folder stays the same source.
        self.url = os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps ".."
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise DataError(f"source {self.url!a}: found {found}, expected a folder of images; check ingest.source")
        self._real = os.path.realpath(folder)

    def list(self) -> Iterator[SourceFile]:
        """Yield every file below the folder, as ``Source.list`` says."""
        try:
            pending = self._entries("")  # a stack and no recursion: folders may be nested deeper than Python's calls
        except ImageRejected as refused:
            raise DataError(f"source {self.url!a} cannot be listed: {refused.detail}") from None
        while pending:
            name = pending.pop()
            if not name.endswith("/"):
                yield from self._file(name)
                continue
            try:
                pending.extend(self._entries(name))
            except ImageRejected as refused:
                yield SourceFile(name, 0, "", refused)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        """Return a file's bytes; never waits for a pipe or a device."""
        try:
            self._lookup(name)
            # Between the look and the opening the file may have become a pipe: do not wait for its writer.
            with open(os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
                _regular(os.fstat(file.fileno()))
                file.seek(start)
                return file.read(-1 if length is None else length)
        except OSError as error:
            raise _refused(error, name) from None

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _entries(self, prefix: str) -> _Names:
        """Return the names in a folder, last one first; those of folders end in a slash, and sort by it too.

        Only names are kept: a folder may have millions, and all that the system says of them would take much room.
        """
        try:
            with os.scandir(self._path(prefix)) as found:
                names = [
                    f"{prefix}{entry.name}{'/' * entry.is_dir(follow_symlinks=False)}"
                    for entry in found
                    if not entry.name.startswith(".")
                ]
        except OSError as error:
            raise _refused(error, prefix or self.url) from None
        names.sort(reverse=True)
        return names

    def _file(self, name: str) -> Iterator[SourceFile]:
        path = self._path(name)
        try:
            found = os.lstat(path)
            # Only a link can lead elsewhere: the folders on the way were not followed if they were links.
            found = self._lookup(name) if stat.S_ISLNK(found.st_mode) else _regular(found)
        except IsADirectoryError:
            return  # a link to a folder inside: its files are listed where they are
        except ImageRejected as refused:
            # A link to a folder elsewhere may hold images: its name gets the slash of a folder.
            yield SourceFile(name + "/" * os.path.isdir(path), 0, "", refused)  # noqa: PTH112 - names are strings here
        except OSError as error:
            yield SourceFile(name, 0, "", _refused(error, name))
        else:
            # The change time too: a copy that keeps the old modification time is still noticed.
            yield SourceFile(name, found.st_size, f"{found.st_mtime_ns}-{found.st_ctime_ns}")

    def _lookup(self, name: str) -> os.stat_result:
        """Return the status of a regular file inside the folder.

        Raises:
            ImageRejected: Where it is something else, or somewhere else.
            OSError: Where it cannot be looked at, or is a folder.
        """
        path = self._path(name)
        target = os.path.realpath(path, strict=True)
        if os.path.commonpath([self._real, target]) != self._real:
            raise ImageRejected("symlink-outside", f"leads to {target!a}, outside of the source; copy the file instead")
        return _regular(os.stat(path))  # noqa: PTH116 - names are strings here, some not UTF-8


class StorageSource(Source):
    """A prefix of an object store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.url = storage.url

    def list(self) -> Iterator[SourceFile]:
        """Yield every object, as ``Source.list`` says."""
        for key, size, modified in self._storage.list():
            if any(part.startswith(".") and part not in (".", "..") for part in key.split("/")):
                continue
            try:
                check_key(key)
            except StorageError as error:  # the store has such a name, and yet it cannot be asked for
                yield SourceFile(key, 0, "", ImageRejected("unreadable", str(error)))
            else:
                yield SourceFile(key, size, modified)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        try:
            return self._storage.read(name, start, length)
        except NotFound:
            raise ImageRejected("unreadable", "it is gone since it was listed; run ingest again") from None


def _regular(found: os.stat_result) -> os.stat_result:
    """Return the status of a regular file unchanged; refuse what could block for ever, or is no file."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise ImageRejected("unreadable", f"is {kind}, expected a file")
    return found


def _refused(error: OSError, name: str) -> ImageRejected:
    """Say what an operating system error means for a file.

    Raises:
        StorageError: Where it is the machine's trouble; no image is given up for it.
    """
    if error.errno in _PASSING:
        raise StorageError(f"cannot read {name!a}: {error.strerror}; start the step again") from None
    return ImageRejected("unreadable", f"{error.strerror or error}; check the file and its permissions")
