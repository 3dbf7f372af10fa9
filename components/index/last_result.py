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
from components.image.records import ingest_rejections_key
from components.index.files import REJECTED, IndexFiles
from components.storage.base import Entry

KEY = "index.json"
FORMAT = 3  # 2: the dataset has captions to take prompts from; 3: one result for each caption set
# What the step itself writes; it may read anything else of the caption set.
_OUTPUTS = (REJECTED, versions.KEY, KEY)
SHARDS = "shards"


def fingerprint(files: IndexFiles, groups: Sequence[str], held_out: float, variants: int | None) -> str:
    """Return a digest of all inputs of the index step, as far as listings show them; empty in a local folder.

    Args:
        files: Where they are.
        groups: The partition groups of the dataset.
        held_out: Share of the images that are held out from training.
        variants: How many variants of each image the dataset has; None for those encoded last.
    """
    if files.dataset.local_path() is not None:
        return ""
    names = [files.source_id, files.caption_set, list(groups)]
    sha256 = hashlib.sha256(canonical_json([FORMAT, names, held_out, variants]))
    for entry in _entries(files):
        sha256.update(canonical_json(entry) + b"\n")
    return sha256.hexdigest()


def read_result(files: IndexFiles, inputs: str) -> dict[str, Any] | None:
    """Return the step's result if the newest version was made from the same inputs; None if it must run."""
    if not inputs:
        return None
    try:
        record = files.records.read_json(KEY)
        committed = versions.read_dataset(files.dataset, files.caption_set)
        same = record["inputs"] == inputs
        if committed is not None and same and record["result"]["dataset_digest"] == committed.digest:
            return dict(record["result"])
    except (NotFound, DataError, KeyError, TypeError, ValueError):
        pass
    return None


def delete_result(files: IndexFiles, inputs: str) -> None:
    """Delete the result before anything is written: what a killed step leaves was not made from these inputs."""
    if inputs:
        files.records.delete(KEY)


def write_result(files: IndexFiles, inputs: str, result: Mapping[str, Any]) -> None:
    """Write the step's result and its inputs, once the dataset is committed."""
    if inputs:
        files.records.write_json(KEY, {"inputs": inputs, "result": dict(result)})


def _entries(files: IndexFiles) -> Iterator[Entry]:
    with suppress(NotFound):
        yield files.workdir.entry(ingest_rejections_key(files.source_id))
    yield from files.captions.list()
    yield from (entry for entry in files.records.list() if entry.key not in _OUTPUTS)
    yield from files.dataset.list(SHARDS)
