"""What ``darkroom dataset … --json`` prints: keys that scripts may rely on. Pure. Times are ISO 8601, in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.datasets.tables import Contents, DatasetVersion, samples_by_bucket, shard_bytes

VERSION_KEYS = "digest, newest, committed, images, held_out, samples, shards, bytes, used_by"


def version_document(version: DatasetVersion) -> dict[str, Any]:
    """Return one version of a dataset as JSON."""
    dataset = version.dataset
    committed = datetime.fromtimestamp(version.written, UTC).isoformat() if version.written else None
    return {
        "digest": dataset.digest,
        "newest": version.newest,
        "committed": committed,
        "images": dataset.images,
        "held_out": dataset.held_out,
        "samples": dataset.samples,
        "shards": len(dataset.shards),
        "bytes": shard_bytes(dataset),
        "used_by": list(version.used_by),
    }


def dataset_document(key: str, version: DatasetVersion, of: int, contents: Contents | None) -> dict[str, Any]:
    """Return what one version of a dataset holds, as JSON.

    Args:
        key: The dataset's name.
        version: The version.
        of: Number of versions.
        contents: Counts over its images; None for an earlier version, of which only the shards are kept.
    """
    buckets = samples_by_bucket(version.dataset).items()
    whole = {
        **version_document(version),
        "buckets": [{"width": width, "height": height, "samples": samples} for (height, width), samples in buckets],
        "encoding": dict(version.dataset.encoding),
    }
    counts = {} if contents is None else {name: dict(counter) for name, counter in vars(contents).items()}
    return {"name": key, "versions": of, "version": whole, **counts}


def garbage_document(garbage: Mapping[tuple[str, str], tuple[int, int]], deleted: bool) -> dict[str, Any]:
    """Return what nothing uses, as JSON.

    Args:
        garbage: For each folder and kind, the number of pieces and their bytes.
        deleted: Whether they were deleted.
    """
    rows = [
        {"folder": folder, "kind": kind, "pieces": pieces, "bytes": total_bytes}
        for (folder, kind), (pieces, total_bytes) in garbage.items()
    ]
    return {"deleted": deleted, "bytes": sum(total for _, total in garbage.values()), "garbage": rows}
