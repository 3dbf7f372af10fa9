"""A training on another dataset than the one before it: the books of the one before are kept, as a run of their own."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from components.accounting.ledger import LEDGER
from components.errors import DamagedFile, NotFound
from components.storage.base import Storage
from pipeline.launch.books.accounting import EVENTS, RECORDS

# Which dataset a run trains on, and under which name the records of the training before are kept.
TRAINING = "training.json"
# In the folder of an earlier training: what it was trained on, and which run went on under its name.
LINEAGE = "lineage.json"
# What is not kept: the checkpoints, from which nothing can go on, the evaluation, whose numbers and images the report
# has and which would keep its dataset from being deleted, and what only the running launch needs.
_NOT_COPIED = re.compile(
    r"(checkpoints|evaluation|leases|steps)/.*|pipeline\.log|launch\.json|local-attempt\.json|training\.json"
)


class KeptTraining(NamedTuple):
    """The training before this one.

    Attributes:
        run: The name of the run that keeps its records; empty if it left none.
        dataset: The dataset that it was trained on.
    """

    run: str
    dataset: str


def has_records_of(run: Storage, dataset: str) -> bool:
    """Tell whether a run's records are those of the training on this dataset."""
    return _training(run).get("dataset") == dataset


def prepare_records(run: Storage, dataset: str, runs: Storage, name: str) -> KeptTraining | None:
    """Move the records of a run away if they are those of a training on another dataset.

    A launcher that is killed in between leaves what the next one needs to move the rest.

    Args:
        run: The run's folder.
        dataset: Digest of the dataset that is trained on now.
        runs: The folder of all runs.
        name: The run's name.

    Returns:
        Where the records of the training before are; None if there was none on another dataset.
    """
    before = _training(run)
    if before.get("dataset") == dataset:
        return None
    kept = KeptTraining("", str(before.get("dataset", "")))
    if before and (run.exists(EVENTS) or run.exists(LEDGER)):
        kept = KeptTraining(str(before.get("kept_as") or _free_name(runs, name)), kept.dataset)
        run.write_json(TRAINING, {**before, "kept_as": kept.run})
        _copy(run, runs.child(kept.run), {"dataset": kept.dataset, "continued_as": name})
    elif before.get("kept_as"):
        kept = kept._replace(run=str(before["kept_as"]))  # killed after it had moved all of them
    for key in RECORDS:
        run.delete(key)
    for folder in ("samples", "evaluation"):
        run.delete_tree(folder)
    run.write_json(TRAINING, {"dataset": dataset, **({"before": kept.run} if kept.run else {})})
    return kept if before else None


def _training(run: Storage) -> dict[str, Any]:
    try:
        training = run.read_json(TRAINING)
    except NotFound:
        if run.exists(LEDGER):
            raise _damage(run, "it is missing, and the ledger is not") from None
        return {}
    if not isinstance(training, dict) or not isinstance(training.get("dataset"), str):
        raise _damage(run, "it names no dataset")
    return training


def _damage(run: Storage, problem: str) -> DamagedFile:
    return DamagedFile(
        f"{TRAINING} in {run.url} does not say what the run's ledger and checkpoints were trained on: {problem}; "
        'restore it, write {"dataset": "<digest>"} into it (darkroom dataset ls lists digests), or delete that run\'s '
        "folder"
    )


def _free_name(runs: Storage, name: str) -> str:
    number = 1
    while any(True for _ in runs.list(f"{name}.{number}")):
        number += 1
    return f"{name}.{number}"


def _copy(run: Storage, target: Storage, lineage: dict[str, Any]) -> None:
    for entry in run.list():
        if not _NOT_COPIED.fullmatch(entry.key):
            target.write(entry.key, run.read(entry.key))
    target.write_json(LINEAGE, lineage)
