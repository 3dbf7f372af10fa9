"""Names made from content: one canonical form for JSON, one hash for everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one byte string that stands for a JSON value: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: For NaN and infinities, which JSON does not have.
        TypeError: For anything that is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value in its canonical form, as 64 hex digits."""
    return sha256(canonical_json(value))


def short(value: Any, digits: int = 16) -> str:
    """Return the first hex digits of a JSON value's digest: the name of a folder or a shard."""
    return digest(value)[:digits]


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_unchanged_file(path: Path) -> str:
    """Return the SHA-256 of a file that nobody changes, such as a model's; a process reads each of them once."""
    status = path.stat()
    return _digest_once(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_once(path: Path, *_status: int) -> str:
    return digest_file(path)


def digest_tree(root: Path, subfolders: Iterable[str]) -> str:
    """Return one digest for all files below some subfolders: their relative names and their bytes.

    Nobody changes them: a process reads each of them once.
    """
    files = [path for folder in subfolders for path in (root / folder).rglob("*") if path.is_file()]
    return digest({path.relative_to(root).as_posix(): digest_unchanged_file(path) for path in files})
