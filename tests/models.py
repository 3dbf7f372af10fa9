"""Models that tests put into a workdir, committed as the steps commit theirs, and what happens to them there."""

from __future__ import annotations

from pathlib import Path

from components import digests
from components.digests import sha256
from components.model import manifest
from components.model.manifest import COMMIT, MANIFEST, commit_model
from components.storage.base import Storage


def commit_all(model: Storage) -> None:
    """Commit whatever lies in a model's folder."""
    keys = [entry.key for entry in model.list() if entry.key not in (COMMIT, MANIFEST)]
    commit_model(model, {key: sha256(model.read(key)) for key in keys}, format_number=1)


def forget_checks() -> None:
    """Let this process check models again, as a new one would."""
    manifest._check.cache_clear()
    digests._digest_once.cache_clear()


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file, which a new process then reads."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    forget_checks()
