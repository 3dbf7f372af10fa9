"""The manifest of a model that Darkroom made: every file's digest, checked once per process before the model is used.

```
models/<name>/<version>/unet/…, vae/…   the model, a diffusers folder
                        manifest.json   format, the SHA-256 of each file, and how texts are read if not as usual
                        COMMIT          SHA-256 of the manifest; written last, and without it there is no model
```

A model of which one bit has flipped would be trained on, measured and published like any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.digests import canonical_json, digest_unchanged_file, sha256
from components.errors import DamagedFile, NotFound
from components.storage.base import Storage

COMMIT = "COMMIT"
MANIFEST = "manifest.json"


def commit_model(
    target: Storage, digests: Mapping[str, str], format_number: int, more: Mapping[str, Any] | None = None
) -> None:
    """Write the manifest and then the marker that makes the files a model.

    Args:
        target: The model's folder.
        digests: The SHA-256 of each of its files, by key.
        format_number: The format of what the writer writes.
        more: What else the manifest says, such as ``components.model.text_reading.TextReading.record``.
    """
    manifest = canonical_json({"format": format_number, "sha256": dict(digests), **(more or {})})
    target.write(MANIFEST, manifest)
    target.write(COMMIT, sha256(manifest).encode())


def read_digests(model: Storage) -> dict[str, str]:
    """Return the SHA-256 of each file of a committed model, by key.

    Raises:
        NotFound: If it was never committed.
        DamagedFile: If the manifest is not the one that was committed.
    """
    commit = model.read(COMMIT)
    try:
        # Base models of earlier versions have the manifest itself as their marker.
        manifest = commit if commit.startswith(b"{") else model.read(MANIFEST)
    except NotFound:
        raise _damage(model.url, f"{MANIFEST} is missing") from None
    if manifest is not commit and sha256(manifest).encode() != commit:
        raise _damage(model.url, f"{MANIFEST} is not the one whose digest {COMMIT} holds")
    try:
        values: Any = json.loads(manifest)
        return {str(name): str(digest) for name, digest in values["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damage(model.url, f"{COMMIT} is no manifest") from None


def check_model(model: Storage, folder: Path) -> None:
    """Compare the files of a committed model with its manifest, unless this process has done so before.

    Args:
        model: The model's folder in its storage, for the manifest and for messages.
        folder: The same folder, or a copy, on this machine.

    Raises:
        NotFound: If it was never committed.
        DamagedFile: If a file is missing or another one.
    """
    _check(model.url, folder, tuple(read_digests(model).items()))


@lru_cache(maxsize=64)
def _check(url: str, folder: Path, digests: tuple[tuple[str, str], ...]) -> None:
    for name, digest in digests:
        path = folder / name
        if not path.is_file():
            raise _damage(url, f"{name} is missing")
        if digest_unchanged_file(path) != digest:
            raise _damage(url, f"{name} is not the file that was committed")


def _damage(url: str, problem: str) -> DamagedFile:
    return DamagedFile(
        f"model {url} is damaged: {problem}; restore it from a copy, or delete the folder and run the step that makes "
        "it again"
    )
