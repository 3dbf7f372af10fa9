"""The runs of a workdir: finding one by the beginning of its name, and what its records say of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.accounting.ledger import read_ledger, spent, total
from components.errors import ConfigError, DarkroomError
from components.model import checkpoints
from components.storage.base import Storage
from components.storage.lease import PIPELINE, TRAINING, Holder, read_holder
from components.storage.open import open_storage
from pipeline.launch.books.accounting import METRICS, parse_lines
from pipeline.launch.books.earlier_trainings import LINEAGE
from pipeline.local.recent import DEFAULT_WORKDIR, last_workdir, recent
from pipeline.work import DONE, FAILED, RUNNING, STOPPED

_CONFIG = re.compile(r"([^/]+)/config\.json")
_TAIL_BYTES = 1 << 16
_RECENT = 10  # runs to list in a message


@dataclass(frozen=True)
class LocalRun:
    """A run in a workdir."""

    workdir: Storage
    name: str

    @property
    def folder(self) -> Storage:
        """The run's folder."""
        return self.workdir.child(f"runs/{self.name}")


@dataclass(frozen=True)
class RunFacts:
    """What the records of a run say; None: they do not say it.

    Attributes:
        run: The run's name.
        workdir: The address of its workdir.
        state: ``running``, ``done``, ``stopped``, ``failed``, ``killed`` (its processes ended without a word), ``kept``
            (an earlier training of a run that was trained again) or ``new``.
        holder: Who runs it, in words, while it is running.
        step: Optimizer steps that are done.
        saved_step: Optimizer steps that are saved.
        loss: Loss of the last of them.
        steps: Optimizer steps in all.
        started: When its first step began, in seconds since 1970.
        seconds: Wall clock of its training.
        usd: Cost of its training.
        published: The folder of the model that it published.
        lineage: What it goes on from, or what goes on from it, in words.
        error: Why it failed or stopped.
    """

    run: str
    workdir: str
    state: str
    holder: str | None
    step: int
    saved_step: int
    loss: float | None
    steps: int | None
    started: float | None
    seconds: float
    usd: float
    published: str | None
    lineage: str | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON."""
        return asdict(self)


def names(workdir: Storage) -> list[str]:
    """Return the names of a workdir's runs."""
    runs = workdir.child("runs")
    folder = runs.local_path()
    if folder is not None:  # quicker than a listing, which reads the folders of all checkpoints
        return sorted(path.parent.name for path in folder.glob("*/config.json"))
    return sorted(match[1] for entry in runs.list() if (match := _CONFIG.fullmatch(entry.key)))


def find(text: str, workdir: str = "") -> LocalRun:
    """Return the run with a name, or the only one that begins so; without a text the one that was used last.

    Args:
        text: The name, or the beginning of it.
        workdir: Where to look; empty: in the workdirs that were used, the last one first.

    Raises:
        ConfigError: If there is no such run, or several.
    """
    if not text:
        return _last(workdir)
    places = [workdir] if workdir else _places()
    for place in places:
        storage = open_storage(place)
        known = names(storage)
        matches = [text] if text in known else [name for name in known if name.startswith(text)]
        if len(matches) == 1:
            return LocalRun(storage, matches[0])
        if matches:
            raise ConfigError(f"{text!r} fits several runs of {place}: {', '.join(matches)}; give more of the name")
    shown = ", ".join(dict.fromkeys(places[:3]))
    raise ConfigError(f"no run {text!r} in {shown}; darkroom runs ls lists the runs, --workdir names another workdir")


def _last(workdir: str) -> LocalRun:
    for place, name in reversed(recent()):
        if not workdir or open_storage(workdir).url == place:
            storage = open_storage(place)
            if _exists(place) and storage.exists(f"runs/{name}/config.json"):
                return LocalRun(storage, name)
    place = workdir or DEFAULT_WORKDIR
    known = names(open_storage(place))
    if len(known) == 1:
        return LocalRun(open_storage(place), known[0])
    listed = f"its runs are {', '.join(known[-_RECENT:])}" if known else "it has no runs; darkroom run starts one"
    raise ConfigError(f"which run of {place}? {listed}")


def _places() -> list[str]:
    used = [place for place, _name in reversed(recent()) if _exists(place)]
    return list(dict.fromkeys([*used, open_storage(DEFAULT_WORKDIR).url]))


def _exists(place: str) -> bool:
    return "://" in place or Path(place).is_dir()


def workdir_or_last(workdir: str) -> str:
    """Return the workdir that was given, or else the one that was used last."""
    return workdir or last_workdir()


def read_facts(run: LocalRun) -> RunFacts:
    """Read what a run's records say; a record that is missing or damaged leaves gaps."""
    folder = run.folder
    config, report = _json(folder, "config.json"), _json(folder, "report.json")
    train, lineage = _section(config, "train"), _json(folder, LINEAGE)
    steps = _steps(folder)
    holder = _holder(folder)
    ledger = read_ledger(folder)
    newest = checkpoints.newest(folder)
    last = _last_metrics(folder)
    saved_step = newest.step if newest is not None else 0
    error = next((str(one["error"]) for one in steps if one.get("error")), None)
    return RunFacts(
        run=run.name,
        workdir=run.workdir.url,
        state="running" if holder else "kept" if lineage else _state(steps, report),
        holder=f"process {holder.pid} on {holder.host}" if holder else None,
        step=max(saved_step, int(last.get("step") or 0)),
        saved_step=saved_step,
        loss=last.get("loss"),
        steps=train.get("steps"),
        started=min((float(one["started"]) for one in steps if "started" in one), default=report.get("started")),
        seconds=total(ledger).seconds,
        usd=spent(ledger),
        published=report.get("published") if isinstance(report.get("published"), str) else None,
        lineage=_lineage(_section(train, "continued"), lineage),
        error=error if holder is None else None,
    )


def _state(steps: list[dict[str, Any]], report: Mapping[str, Any]) -> str:
    states = {one.get("status") for one in steps}
    if not states:
        return "new"
    for status, state in ((FAILED, "failed"), (STOPPED, "stopped"), (RUNNING, "killed")):
        if status in states:
            return state
    return "done" if states == {DONE} and report.get("status") == "succeeded" else "stopped"


def _lineage(continued: Mapping[str, Any], kept: Mapping[str, Any]) -> str | None:
    if kept:
        return f"trained on dataset {str(kept.get('dataset'))[:12]}; {kept.get('continued_as')} went on with another"
    if continued.get("run"):
        return f"continues {continued['run']} from step {continued.get('step')}"
    return None


def _last_metrics(folder: Storage) -> dict[str, Any]:
    if not folder.exists(METRICS):
        return {}
    size = folder.entry(METRICS).size
    return dict(next(reversed(list(parse_lines(folder.read(METRICS, max(0, size - _TAIL_BYTES))))), {}))


def _holder(folder: Storage) -> Holder | None:
    for name in (PIPELINE, TRAINING):
        try:
            if (holder := read_holder(folder, name)) is not None:
                return holder
        except DarkroomError:
            continue
    return None


def _steps(folder: Storage) -> list[dict[str, Any]]:
    return [record for entry in folder.list("steps") if (record := _json(folder, entry.key))]


def _json(folder: Storage, key: str) -> dict[str, Any]:
    try:
        value = folder.read_json(key)
    except DarkroomError:
        return {}
    return value if isinstance(value, dict) else {}


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}
