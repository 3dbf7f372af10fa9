"""Who refers to what: the caption sets, versions of datasets and base models that runs and published models use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from components.errors import DataError, NotFound
from components.storage.base import Storage

BASES = "models/base"
# The files in which a run records what it uses, and under which keys. A step's record is of the run's last start only;
# the records of training and evaluation stay until these begin anew.
_RECORDS = {
    "steps/ingest.json": {"caption_set": "caption_sets"},
    "steps/autoencoder.json": {"encoding_key": "encodings", "base_model": "bases"},
    "steps/index.json": {"encoding_key": "encodings", "dataset_digest": "versions"},
    "training.json": {"dataset": "versions"},
    "evaluation/evaluation.json": {"dataset_digest": "versions", "base_model": "bases"},
}


@dataclass(frozen=True)
class Reference:
    """What one run or one published model uses.

    Attributes:
        by: Who refers, for messages: ``run <name>`` or ``model <name>``.
        encodings: Names of datasets' folders.
        versions: Digests of datasets.
        bases: Names of base models below ``models/base``.
        written: When it last wrote anything, in seconds since 1970 by the store's clock.
        complete: Whether it has recorded yet which encoding it uses.
        caption_sets: Names of caption sets.
    """

    by: str
    encodings: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset()
    bases: frozenset[str] = frozenset()
    written: float = 0.0
    complete: bool = True
    caption_sets: frozenset[str] = frozenset()


@dataclass(frozen=True)
class InUse:
    """What must not be deleted, from all references together.

    Attributes:
        encodings: Datasets that are used.
        busy: Those of them that a run may be writing to now; nothing in them may be deleted.
        versions: Digests of datasets that are used.
        bases: Base models that are used.
        everything: Whether a run that is active has not recorded yet what it uses.
        caption_sets: Caption sets that are used.
    """

    encodings: frozenset[str]
    busy: frozenset[str]
    versions: frozenset[str]
    bases: frozenset[str]
    everything: bool
    caption_sets: frozenset[str] = frozenset()


def in_use(references: Iterable[Reference], since: float) -> InUse:
    """Return what must not be deleted; a run that has written anything since then may still be active."""
    references = list(references)
    active = [reference for reference in references if reference.written >= since]
    return InUse(
        encodings=frozenset().union(*(reference.encodings for reference in references)),
        busy=frozenset().union(*(reference.encodings for reference in active)),
        versions=frozenset().union(*(reference.versions for reference in references)),
        bases=frozenset().union(*(reference.bases for reference in references)),
        everything=any(not reference.complete for reference in active),
        caption_sets=frozenset().union(*(reference.caption_sets for reference in references)),
    )


def read_references(workdir: Storage) -> list[Reference]:
    """Read what all runs and published models of a workdir refer to.

    Raises:
        DataError: If a record cannot be read: what it refers to must not be deleted.
    """
    return [*_of_runs(workdir), *_of_models(workdir)]


def _of_runs(workdir: Storage) -> Iterator[Reference]:
    newest: dict[str, float] = {}
    records: dict[str, list[str]] = {}
    for entry in workdir.list_dated("runs"):
        _, run, *rest = entry.key.split("/")
        newest[run] = max(newest.get(run, 0.0), entry.written)
        if "/".join(rest) in _RECORDS:
            records.setdefault(run, []).append("/".join(rest))
    for run, written in newest.items():
        used: dict[str, set[str]] = {"encodings": set(), "versions": set(), "bases": set(), "caption_sets": set()}
        for name in records.get(run, ()):
            for kind, value in _used(workdir, f"runs/{run}/{name}", _RECORDS[name]):
                used[kind].add(value)
        bases = frozenset(_base_key(uri) for uri in used["bases"])
        encodings, versions, caption_sets = (
            frozenset(used[kind]) for kind in ("encodings", "versions", "caption_sets")
        )
        yield Reference(f"run {run}", encodings, versions, bases, written, bool(encodings), caption_sets)


def _of_models(workdir: Storage) -> Iterator[Reference]:
    for entry in workdir.list("models"):
        _, name, *rest = entry.key.split("/")
        if rest == ["champion.json"]:
            used = _used(workdir, entry.key, {"dataset_digest": "versions"})
            yield Reference(f"model {name}", versions=frozenset(value for _, value in used))


def _used(workdir: Storage, key: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the kind and the name of each thing that a record refers to."""
    try:
        record: Any = workdir.read_json(key)
    except NotFound:  # deleted since it was listed
        return
    values = record.get("result", record) if isinstance(record, dict) else record
    if values is None:  # the step is running, or failed
        return
    if not isinstance(values, dict):
        raise DataError(
            f"{workdir.url}: {key} is a JSON {type(values).__name__}, expected an object; "
            "restore the file, or delete that run or model"
        )
    for name, kind in names.items():
        if isinstance(value := values.get(name), str):
            yield kind, value


def _base_key(uri: str) -> str:
    """Return the name of a base model in the workdir; the name of any other model is returned unchanged."""
    return uri.removeprefix(f"workdir:{BASES}/")
