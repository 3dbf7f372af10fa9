"""Local files: written whole or not at all, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from components.errors import StorageError
from components.storage.base import HIDDEN

NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NOT_ALLOWED = "give this user the right to do it, or choose another folder"
_SAME_NAME = "a file and a folder cannot have the same name; move one of them or choose another folder"
_NO_SPACE = "free some space or choose another disk"
_ADVICE = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOTDIR: _SAME_NAME,
    errno.EEXIST: _SAME_NAME,
    errno.EISDIR: _SAME_NAME,
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: _NO_SPACE,
    errno.ENAMETOOLONG: "use shorter names",
    errno.ENOENT: "check that the folder exists, and that nothing deletes it meanwhile",
}


@contextmanager
def whole_file(path: Path, rename: Callable[[Path, Path], None] = os.replace) -> Iterator[BinaryIO]:
    """Open a hidden file that becomes ``path`` if the block ends without an exception, and is deleted otherwise.

    A power cut may undo the writes of the last seconds, but leaves no half-written file: the bytes are on the disk
    before the name is.

    Args:
        path: The file to create or to replace; missing folders are created.
        rename: Gives the hidden file its name: ``os.replace``, or ``os.link``, which fails if the name exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(HIDDEN + secrets.token_hex(8))
    try:
        with hidden.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def temporary_cache(name: str) -> Path:
    """Return this user's own folder of a name in the folder for temporary files (``TMPDIR``); create it if missing.

    What lies in it may be trusted by its name, so nobody else may be able to put a file there.

    Raises:
        StorageError: If it belongs to another user, who made a folder or a link of this name first.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with explained(f"use {folder} as a cache"):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise StorageError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
        if status.st_mode & _OTHERS_WRITE:
            folder.chmod(0o700)
    return folder


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turn the operating system's errors into ``StorageError: cannot <action>: <why>; <what to do>``."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "")
        raise StorageError(f"cannot {action}: {error.strerror or error}{'; ' * bool(advice)}{advice}") from error
