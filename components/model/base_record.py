"""What a run's base model was when the run began: ``runs/<run>/base.json`` has the digest of each of its parts.

Everything in a run comes from its base model. If a folder or a repository were another one at the next start, all
would be encoded and trained again, and the checkpoints thrown away, without a word.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from components.digests import digest_tree
from components.errors import DamagedFile, DataError, NotFound
from components.storage.base import Storage

KEY = "base.json"


def record_base(run: Storage, base_model: str, folder: Path) -> None:
    """Record what the base model of a run is, when the run begins; later, check that it is the same.

    Args:
        run: The run's folder.
        base_model: The model's location.
        folder: The model itself.

    Raises:
        DataError: If the run began with another one.
    """
    if run.exists(KEY):
        check_base(run, base_model, folder)
        return
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    run.write_json(KEY, {"base_model": base_model, "parts": {part: digest_tree(folder, [part]) for part in parts}})


def check_base(run: Storage, base_model: str, folder: Path, needed: Collection[str] | None = None) -> None:
    """Check that a run's base model is the one that it began with, if that was recorded.

    Args:
        run: The run's folder.
        base_model: The model's location now.
        folder: The model itself.
        needed: The parts that matter; None for all.

    Raises:
        DataError: If a part is missing or another one.
        DamagedFile: If the record is damaged.
    """
    try:
        record = run.read_json(KEY)
        parts = {str(part): str(digest) for part, digest in record["parts"].items() if not needed or part in needed}
        first = str(record["base_model"])
    except NotFound:
        return
    except (AttributeError, KeyError, TypeError):
        raise DamagedFile(f"{KEY} in {run.url} is damaged; delete it, and the base model as it is now counts") from None
    if changed := [part for part, digest in parts.items() if digest_tree(folder, [part]) != digest]:
        raise DataError(
            f"model {base_model!r} is not the one that the run in {run.url} began with ({first!r}): its "
            f"{', '.join(changed)} changed; restore it, or give the run another name (name), or delete {KEY} there to "
            "begin this run anew with the model as it is now"
        )
