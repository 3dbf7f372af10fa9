"""Where images come from: a local folder, an object store or the example that comes along; read, never written to.

A source is not trusted. Links may lead out of the folder, a name ending in ``.jpg`` may be a pipe that blocks for ever,
a file may be removed between listing and reading: each is rejected by name, and the rest is read.

A member of a tar has a name of its own, ``shards/00000.tar//000001.jpg@1536+20480``: the file, two slashes (which no
file's name contains), the member's name in the archive, and the position of its bytes, from byte 1536 on and 20,480 of
them. So one ranged request reads it, no index is needed, and nothing is ever unpacked.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from components.digests import short
from components.errors import DataError, ImageRejected, NotFound, StorageError
from components.image.records import Manifest, read_manifest
from components.storage.base import Storage, check_key
from components.storage.open import open_storage

# Errors of this machine and not of the file: a retry may help, and no image must be rejected for them.
_TRANSIENT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR}

# Between the name of an archive and that of its member; no name of a file in a source has an empty part.
_SEPARATOR = "//"

# Endings of files that hold, or name, many images, so that one of them can be a source by itself.
FILES_OF_IMAGES = (
    *(".tar", ".parquet", ".arrow", ".h5", ".hdf5", ".hdf"),
    *(".txt", ".csv", ".tsv", ".json", ".jsonl"),  # lists of addresses
)

# Reason of a rejection that the name alone decides: it does not pass by itself.
BAD_NAME = "unusable-name"

# What the address of images that come with Darkroom begins with.
EXAMPLE = "example:"

# Returns bytes of one file: the position of the first, how many; past the end there are just fewer.
ReadRange = Callable[[int, int], bytes]

_Names = list[str]  # inside the classes, "list" is the method


class SourceFile(NamedTuple):
    """One file of a source.

    Attributes:
        name: Its path below the source, with ``/`` between the parts. Bytes that are not UTF-8 are lone surrogates.
        size: Bytes.
        modified: An opaque tag that changes when the file does; empty if there is none.
        rejection: Why it must not be read, if the listing shows that already. A folder that cannot be listed is
            reported in this way, with a slash at the end of its name.
    """

    name: str
    size: int
    modified: str
    rejection: ImageRejected | None = None


class Member(NamedTuple):
    """Where an archive has the bytes of a member.

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
    return f"{archive}{_SEPARATOR}{member}@{start}+{size}"


def parse_member(name: str) -> Member | None:
    """Return where a member's bytes are, or None for the name of a file."""
    archive, separator, rest = name.partition(_SEPARATOR)
    if not separator:
        return None
    start, plus, size = rest.rpartition("@")[2].partition("+")
    if not (plus and start.isdecimal() and size.isdecimal()):
        raise ImageRejected(
            "unreadable", f"{name!a} must end in @START+SIZE, its bytes in the archive; run ingest again"
        )
    return Member(archive, int(start), int(size))


class Source(ABC):
    """A tree of files that can be listed and read.

    Attributes:
        url: Its address, absolute.
    """

    url: str

    @property
    def id(self) -> str:
        """The name of the place, made from the URL alone: what is read of a file is the same for all settings."""
        return short(self.url)

    @abstractmethod
    def list(self) -> Iterator[SourceFile]:
        """Yield every file below the source, sorted by name; hidden ones (``.name``) are ignored.

        Raises:
            DataError: If the source itself cannot be listed.
            StorageError: If the storage fails; a retry may help.
        """

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file, or of a member of an archive.

        Args:
            name: As in the listing, or from `member_name`.
            start: Position of the first byte.
            length: How many to read at most; None for all that follow.

        Raises:
            ImageRejected: ``unreadable`` or ``symlink-outside``.
            StorageError: If the storage fails; a retry may help.
        """
        member = parse_member(name)
        if member is None:
            return self._read(name, start, length)
        length = max(0, member.size - start if length is None else min(length, member.size - start))
        data = self._read(member.archive, member.start + start, length)
        if len(data) < length:
            raise ImageRejected(
                "unreadable", f"{member.archive!a} has become shorter since it was listed; run ingest again"
            )
        return data

    def find(self, name: str) -> Iterator[SourceFile]:
        """Yield the file of a name, as ``list`` would; nothing if there is none."""
        return (file for file in self.list() if file.name == name)

    @abstractmethod
    def _read(self, name: str, start: int, length: int | None) -> bytes:
        """Return the bytes of a file, as ``read`` says."""

    def exists(self, name: str) -> bool:
        """Tell whether there is a file, even if it cannot be read."""
        return any(file.name == name for file in self.list())


def open_source(url: str) -> Source:
    """Open a source: a local folder (also ``file://``), ``s3://bucket/prefix``, or one file that holds many images.

    ``example:digits`` is the source that comes along.

    Raises:
        DataError: If there is no such folder or file.
        ConfigError: If the address is of another kind.
    """
    if url.startswith(EXAMPLE):
        from components.image.examples.digits import DigitsSource  # here, since few runs need it

        return DigitsSource(url)
    storage = open_storage(url)
    folder = storage.local_path()
    holds_images = url.lower().endswith(FILES_OF_IMAGES)
    if folder is not None:
        is_file = holds_images and folder.is_file()
        return FileSource(FolderSource(folder.parent), folder.name) if is_file else FolderSource(folder)
    parent, _, name = url.rpartition("/")
    is_object = holds_images and not parent.endswith("/")  # not the bucket's name
    return FileSource(StorageSource(open_storage(parent)), name) if is_object else StorageSource(storage)


def open_images(manifest: Manifest, workdir: Storage) -> Source:
    """Open what holds the images that ingest has recorded, by the names in its records.

    Args:
        manifest: What ingest has written for a source.
        workdir: Where it is from.

    Raises:
        DataError: If there is no such folder any more.
        ConfigError: If the address is of another kind.
    """
    if manifest.members:
        from components.image.union_source import UnionSource  # here, since it imports this module

        ids = {member.label: member.source_id for member in manifest.members}
        return UnionSource({label: open_images(read_manifest(workdir, one), workdir) for label, one in ids.items()})
    if manifest.imports:
        return StorageSource(workdir.child(manifest.imports))
    return open_source(manifest.source)


class FolderSource(Source):
    """A local folder, read recursively. Links to files inside it are followed, links to folders are not.

    Raises:
        DataError: If there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        # Absolute, not resolved: a link that is pointed to a new version of the folder stays the same source.
        self.url = os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps ".."
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"source {self.url!a} {problem}; expected a folder of images; check ingest.source")
        self._real = os.path.realpath(folder)

    def list(self) -> Iterator[SourceFile]:
        """Yield every file below the folder, as ``Source.list`` says."""
        try:
            pending = self._entries("")  # a stack and no recursion: folders may be nested deeper than Python's calls
        except ImageRejected as error:
            raise DataError(f"source {self.url!a} cannot be listed: {error.detail}") from None
        while pending:
            name = pending.pop()
            if not name.endswith("/"):
                yield from self.find(name)
                continue
            try:
                pending.extend(self._entries(name))
            except ImageRejected as error:
                yield SourceFile(name, 0, "", error)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        """Return a file's bytes; never waits for a pipe or a device."""
        try:
            self._status(name)
            # Since the check above the file may have become a pipe: do not wait for its writer.
            with open(os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
                _regular(os.fstat(file.fileno()))
                file.seek(start)
                return file.read(-1 if length is None else length)
        except OSError as error:
            raise _rejection(error, name) from None

    def exists(self, name: str) -> bool:
        """Tell whether there is a file, as ``Source.exists`` says."""
        return os.path.lexists(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _entries(self, prefix: str) -> _Names:
        """Return the names in a folder, last one first; those of folders end in a slash, and sort by it too.

        Only names are kept: a folder may have millions, and their status would take much memory.
        """
        try:
            with os.scandir(self._path(prefix)) as entries:
                names = [
                    f"{prefix}{entry.name}{'/' * entry.is_dir(follow_symlinks=False)}"
                    for entry in entries
                    if not entry.name.startswith(".")
                ]
        except OSError as error:
            raise _rejection(error, prefix or self.url) from None
        names.sort(reverse=True)
        return names

    def find(self, name: str) -> Iterator[SourceFile]:
        """Yield the file of a name."""
        path = self._path(name)
        try:
            status = os.lstat(path)
            # Only a link can lead elsewhere: the folders on the way were not followed if they were links.
            status = self._status(name) if stat.S_ISLNK(status.st_mode) else _regular(status)
        except IsADirectoryError:
            return  # a link to a folder inside: its files are listed where they are
        except ImageRejected as rejection:
            # A link to a folder elsewhere may hold images: its name gets the slash of a folder.
            yield SourceFile(name + "/" * os.path.isdir(path), 0, "", rejection)  # noqa: PTH112 - names are strings here
        except OSError as error:
            yield SourceFile(name, 0, "", _rejection(error, name))
        else:
            # The change time too: a copy that keeps the old modification time is still noticed.
            yield SourceFile(name, status.st_size, f"{status.st_mtime_ns}-{status.st_ctime_ns}")

    def _status(self, name: str) -> os.stat_result:
        """Return the status of a regular file inside the folder.

        Raises:
            ImageRejected: If it is no regular file, or is outside the folder.
            OSError: If its status cannot be read, or it is a folder.
        """
        path = self._path(name)
        target = os.path.realpath(path, strict=True)
        if os.path.commonpath([self._real, target]) != self._real:
            raise ImageRejected("symlink-outside", f"leads to {target!a}, outside the source; copy the file instead")
        return _regular(os.stat(path))  # noqa: PTH116 - names are strings here, some not UTF-8


class StorageSource(Source):
    """A prefix of an object store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.url = storage.url

    def list(self) -> Iterator[SourceFile]:
        """Yield every object, as ``Source.list`` says."""
        for key, size, modified in self._storage.list_all():
            if any(part.startswith(".") and part not in (".", "..") for part in key.split("/")):
                continue
            try:
                check_key(key)
            except StorageError as error:  # stores allow such names, but a path or a tar's member could mean the same
                yield SourceFile(key, 0, "", ImageRejected(BAD_NAME, f"{error}; rename the object"))
            else:
                yield SourceFile(key, size, modified)

    def find(self, name: str) -> Iterator[SourceFile]:
        """Yield the object of a name."""
        with suppress(NotFound):
            yield SourceFile(*self._storage.entry(name))

    def exists(self, name: str) -> bool:
        """Tell whether there is an object, as ``Source.exists`` says."""
        return self._storage.exists(name)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        try:
            return self._storage.read(name, start, length)
        except NotFound:
            raise ImageRejected("unreadable", f"{name!a} was removed since it was listed; run ingest again") from None


class FileSource(Source):
    """One file that holds many images. What its rows name is read from beside it.

    Args:
        parent: The folder that it lies in.
        name: Its name there.
    """

    def __init__(self, parent: Source, name: str) -> None:
        self.url = f"{parent.url}/{name}"
        self._parent = parent
        self._name = name

    def list(self) -> Iterator[SourceFile]:
        """Yield the file."""
        files = [*self._parent.find(self._name)]
        if not files:
            raise DataError(f"source {self.url!a} does not exist; check ingest.source")
        return iter(files)

    def exists(self, name: str) -> bool:
        """Tell whether there is a file beside it, as ``Source.exists`` says."""
        return self._parent.exists(name)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        return self._parent.read(name, start, length)


def _regular(status: os.stat_result) -> os.stat_result:
    """Return the status of a regular file unchanged; reject what could block for ever, or is no file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise ImageRejected("unreadable", f"is {kind}, expected a file")
    return status


def _rejection(error: OSError, name: str) -> ImageRejected:
    """Return the rejection that an operating system error means for a file.

    Raises:
        StorageError: If the error is this machine's and not the file's; no image is rejected for it.
    """
    if error.errno in _TRANSIENT:
        raise StorageError(f"cannot read {name!a}: {error.strerror}; start the step again") from None
    return ImageRejected("unreadable", f"{error.strerror or error}; check the file and its permissions")
