"""What the newest version was made from, so that the next start sees from listings alone that nothing has changed.

Reading every shard's index takes one request each. A listing has a thousand objects in one request, with version tags
that change when the objects do: if all tags are the same, the same dataset would come out. In S3 a tag is a digest of
the bytes, so a caption step that writes the same records again changes nothing. In a local folder a tag is a time, so
the record would depend on when the folder was written, and reading is cheap there: nothing is recorded.
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
FORMAT = 2  # 2: the dataset has captions to take prompts from
# What the step itself writes; it may read anything else in the dataset's folder.
_OUTPUTS = ("rejected.jsonl", authors.KEY, versions.KEY, KEY, f"{versions.VERSIONS}/")


def fingerprint(workdir: Storage, storage: Storage, source_id: str, groups: Sequence[str], held_out: float) -> str:
    """Return a digest of all inputs of the index step, as far as listings show them; empty in a local folder.

    Args:
        workdir: The storage of ingest's rejections.
        storage: The dataset's folder.
        source_id: The source, as ingest named it.
        groups: The partition groups of the dataset.
        held_out: Share of the images that are held out from training.
    """
    if storage.local_path() is not None:
        return ""
    sha256 = hashlib.sha256(canonical_json([FORMAT, source_id, list(groups), held_out]))
    for entry in _entries(workdir, storage, source_id):
        sha256.update(canonical_json(entry) + b"\n")
    return sha256.hexdigest()


def read_result(storage: Storage, inputs: str) -> dict[str, Any] | None:
    """Return the step's result if the newest version was made from the same inputs; None if it must run."""
    if not inputs:
        return None
    try:
        record = storage.read_json(KEY)
        committed = versions.read_dataset(storage)
        same = record["inputs"] == inputs
        if committed is not None and same and record["result"]["dataset_digest"] == committed.digest:
            return dict(record["result"])
    except (NotFound, DataError, KeyError, TypeError, ValueError):
        pass
    return None


def delete_result(storage: Storage, inputs: str) -> None:
    """Delete the result before anything is written: what a killed step leaves was not made from these inputs."""
    if inputs:
        storage.delete(KEY)


def write_result(storage: Storage, inputs: str, result: Mapping[str, Any]) -> None:
    """Write the step's result and its inputs, once the dataset is committed."""
    if inputs:
        storage.write_json(KEY, {"inputs": inputs, "result": dict(result)})


def _entries(workdir: Storage, storage: Storage, source_id: str) -> Iterator[Entry]:
    with suppress(NotFound):
        yield workdir.entry(ingest_rejections_key(source_id))
    yield from (entry for entry in storage.list() if not entry.key.startswith(_OUTPUTS))
