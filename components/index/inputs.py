"""What a version was made from, so that the next start tells from listings alone that nothing has changed.

Reading every shard's index takes a request each. A listing tells a thousand objects at once, with tags that change when
they do: where all of them are as they were, the same dataset would come out. In S3 a tag is a digest of the bytes, so
that a caption step which writes the same records again changes nothing. In a local folder a tag is a time, which would
make the folder's bytes depend on when it was written, and reading is cheap: nothing is noted there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from components.dataset import versions
from components.digests import canonical_json
from components.errors import DataError, NotFound
from components.image import authors
from components.image.records import ingest_rejections_key
from components.storage.base import Entry, Storage

KEY = "index.json"
FORMAT = 1
# What the step itself writes; all else in the dataset's folder may be what it goes by.
_OUTPUTS = ("rejected.jsonl", authors.KEY, versions.KEY, KEY, f"{versions.VERSIONS}/")


def fingerprint(workdir: Storage, storage: Storage, source_id: str, groups: Sequence[str], held_out: float) -> str:
    """Return a digest of all that the index step goes by, as far as listings tell; empty in a local folder.

    Args:
        workdir: Where ingest's rejections are.
        storage: The dataset's folder.
        source_id: The source, as ingest named it.
        groups: The partition groups that make the dataset.
        held_out: Share of the images that are kept from training.
    """
    if storage.local_path() is not None:
        return ""
    found = hashlib.sha256(canonical_json([FORMAT, source_id, list(groups), held_out]))
    for entry in _entries(workdir, storage, source_id):
        found.update(canonical_json(entry) + b"\n")
    return found.hexdigest()


def known_result(storage: Storage, inputs: str) -> dict[str, Any] | None:
    """Return what the step returned when the dataset was made from the same; None where it must be made anew."""
    if not inputs:
        return None
    try:
        note = storage.read_json(KEY)
        committed = versions.read_dataset(storage)
        if committed is not None and note["inputs"] == inputs and note["result"]["dataset_digest"] == committed.digest:
            return dict(note["result"])
    except (NotFound, DataError, KeyError, TypeError, ValueError):
        pass
    return None


def forget_result(storage: Storage, inputs: str) -> None:
    """Forget it before anything is written, since what a killed step leaves was not made from it."""
    if inputs:
        storage.delete(KEY)


def note_result(storage: Storage, inputs: str, result: Mapping[str, Any]) -> None:
    """Remember what the dataset was made from, once it is committed."""
    if inputs:
        storage.write_json(KEY, {"inputs": inputs, "result": dict(result)})


def _entries(workdir: Storage, storage: Storage, source_id: str) -> Iterator[Entry]:
    with suppress(NotFound):
        yield workdir.entry(ingest_rejections_key(source_id))
    yield from (entry for entry in storage.list() if not entry.key.startswith(_OUTPUTS))
