"""The workdirs that runs on this machine used last, so that verbs about runs find them without being told.

They are kept in ``$XDG_STATE_HOME/darkroom/runs.json`` (``~/.local/state`` by default), the newest last. That is a
convenience: if the file cannot be read or written, nothing but the convenience is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from components.storage.files import whole_file

_FILE = Path("darkroom") / "runs.json"
_MOST = 100
DEFAULT_WORKDIR = "workdir"


def remember(workdir: str, run: str) -> None:
    """Note that a run in a workdir, given by its absolute address, was used now."""
    kept = [pair for pair in recent() if pair != (workdir, run)]
    with contextlib.suppress(OSError), whole_file(_path()) as file:
        file.write(json.dumps([*kept, (workdir, run)][-_MOST:], indent=1).encode() + b"\n")


def recent() -> list[tuple[str, str]]:
    """Return the runs that were used, the newest last, each with its workdir's address before its name."""
    try:
        pairs = json.loads(_path().read_bytes())
        return [(str(workdir), str(run)) for workdir, run in pairs]
    except (OSError, ValueError, TypeError):
        return []


def last_workdir(run: str = "") -> str:
    """Return the workdir in which a run was used last whose name begins so, or else any run."""
    pairs = recent()
    for workdir, name in reversed(pairs):
        if run and name.startswith(run):
            return workdir
    return pairs[-1][0] if pairs else DEFAULT_WORKDIR


def _path() -> Path:
    folder = os.environ.get("XDG_STATE_HOME", "")
    # The standard says that a relative path is to be ignored.
    return (Path(folder) if folder.startswith("/") else Path.home() / ".local" / "state") / _FILE
