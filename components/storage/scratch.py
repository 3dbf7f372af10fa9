"""Temporary folders of this process, and the removal of those that killed processes left behind.

A folder's name says who made it: ``darkroom-<purpose>-<pid>-<start>-<machine>-…``. ``start`` is the process's start
time, since numbers of processes are used again, and ``machine`` stands for this boot and this container, where those
two mean something. Whoever makes a folder first removes those whose owner is gone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from components.digests import short

_NAME = re.compile(r"darkroom-[a-z]+-(?P<pid>\d+)-(?P<start>\d+)-(?P<machine>[0-9a-f]{8})-\w+")
_PROCESSES = Path("/proc")


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Make a temporary folder that is removed at the end, or if this process is killed, by the next that needs one.

    Args:
        purpose: Part of its name, a-z.
    """
    sweep()
    owner = f"{os.getpid()}-{_start_of(os.getpid()) or 0}-{_machine()}"
    with tempfile.TemporaryDirectory(prefix=f"darkroom-{purpose}-{owner}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def sweep() -> None:
    """Remove this user's temporary folders whose owner is gone and that no living process was started with."""
    left = [folder for folder in Path(tempfile.gettempdir()).glob("darkroom-*") if _is_left_behind(folder)]
    used = _arguments() if left else []
    for folder in left:
        if not any(os.fsencode(folder) in arguments for arguments in used):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: Path) -> bool:
    match = _NAME.fullmatch(folder.name)
    if match is None or match["machine"] != _machine() or folder.is_symlink():
        return False
    try:
        is_own = folder.lstat().st_uid == os.getuid()
    except OSError:  # another process was faster
        return False
    return is_own and _start_of(int(match["pid"])) != int(match["start"])


def _start_of(pid: int) -> int | None:
    """Return when a process was started, in the kernel's own unit; None if there is no such process."""
    try:
        status = (_PROCESSES / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[19])  # the name before may hold blanks and brackets


def _arguments() -> list[bytes]:
    """Return the command lines of all processes: an orphan may still work in its launcher's folder."""
    lines = []
    for file in _PROCESSES.glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes())
        except OSError:
            continue
    return lines


@cache
def _machine() -> str:
    """Return what this boot and this container are called in names; another one's processes cannot be seen here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return short([boot, str(Path("/proc/self/ns/pid").readlink())], 8)
    except OSError:  # not Linux: nothing can be known of other processes, so that each only knows its own folders
        return short([os.getpid()], 8)
