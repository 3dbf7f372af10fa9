"""Who refers to what: the versions of datasets and the base models that runs and published models rest on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from components.errors import DataError, NotFound
from components.storage.base import Storage

BASES = "models/base"
# Where a run says what it uses, and under which names. A step's record is of the run's last start alone; what training
# and evaluation wrote down stays until they begin anew.
_RECORDS = {
    "steps/autoencoder.json": {"encoding_key": "encodings", "base_model": "bases"},
    "steps/index.json": {"encoding_key": "encodings", "dataset_digest": "versions"},
    "training.json": {"dataset": "versions"},
    "evaluation/evaluation.json": {"dataset_digest": "versions", "base_model": "bases"},
}


@dataclass(frozen=True)
class Reference:
    """What one run or one published model uses.

    Attributes:
        by: Who refers, for a person: ``run <name>`` or ``model <name>``.
        encodings: Names of datasets' folders.
        versions: Digests of datasets.
        bases: Names of base models below ``models/base``.
        written: When it last wrote anything, in seconds since 1970 by the store's clock.
        complete: Whether it has said by now which encoding it uses.
    """

    by: str
    encodings: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset()
    bases: frozenset[str] = frozenset()
    written: float = 0.0
    complete: bool = True


@dataclass(frozen=True)
class Kept:
    """What must stay, all references taken together.

    Attributes:
        encodings: Datasets that are used.
        busy: Those of them that somebody may be writing to just now; nothing in them is to be touched.
        versions: Digests of datasets that are used.
        bases: Base models that are used.
        everything: Whether somebody is at work who has not said yet what it uses.
    """

    encodings: frozenset[str]
    busy: frozenset[str]
    versions: frozenset[str]
    bases: frozenset[str]
    everything: bool


def keep(references: Iterable[Reference], since: float) -> Kept:
    """Return what must stay; whoever has written anything since then may be at work still."""
    found = list(references)
    at_work = [reference for reference in found if reference.written >= since]
    return Kept(
        encodings=frozenset().union(*(reference.encodings for reference in found)),
        busy=frozenset().union(*(reference.encodings for reference in at_work)),
        versions=frozenset().union(*(reference.versions for reference in found)),
        bases=frozenset().union(*(reference.bases for reference in found)),
        everything=any(not reference.complete for reference in at_work),
    )


def read_references(workdir: Storage) -> list[Reference]:
    """Read what all runs and published models of a workdir refer to.

    Raises:
        DataError: Where a record cannot be understood: what it refers to must not be taken for garbage.
    """
    return [*_of_runs(workdir), *_of_models(workdir)]


def _of_runs(workdir: Storage) -> Iterator[Reference]:
    newest: dict[str, float] = {}
    records: dict[str, list[str]] = {}
    for found in workdir.list_dated("runs"):
        _, run, *rest = found.key.split("/")
        newest[run] = max(newest.get(run, 0.0), found.written)
        if "/".join(rest) in _RECORDS:
            records.setdefault(run, []).append("/".join(rest))
    for run, written in newest.items():
        used: dict[str, set[str]] = {"encodings": set(), "versions": set(), "bases": set()}
        for name in records.get(run, ()):
            for kind, value in _used(workdir, f"runs/{run}/{name}", _RECORDS[name]):
                used[kind].add(value)
        bases = frozenset(_base_key(uri) for uri in used["bases"])
        encodings = frozenset(used["encodings"])
        yield Reference(f"run {run}", encodings, frozenset(used["versions"]), bases, written, bool(encodings))


def _of_models(workdir: Storage) -> Iterator[Reference]:
    for found in workdir.list("models"):
        _, name, *rest = found.key.split("/")
        if rest == ["champion.json"]:
            used = _used(workdir, found.key, {"dataset_digest": "versions"})
            yield Reference(f"model {name}", versions=frozenset(value for _, value in used))


def _used(workdir: Storage, key: str, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what a record says is used: of what kind, and its name."""
    try:
        record: Any = workdir.read_json(key)
    except NotFound:  # gone since it was listed
        return
    values = record.get("result", record) if isinstance(record, dict) else record
    if values is None:  # a step that is running, or failed
        return
    if not isinstance(values, dict):
        raise DataError(f"{workdir.url}: {key} is not what a step writes; delete that run or model, or mend it")
    for name, kind in names.items():
        if isinstance(value := values.get(name), str):
            yield kind, value


def _base_key(uri: str) -> str:
    """Return the name of a base model in the workdir; one from elsewhere is no concern of ours, and stays as it is."""
    return uri.removeprefix(f"workdir:{BASES}/")
