"""Runs on a cluster as lines for a terminal that is 80 wide. Pure, except that `training_rows` reads records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from components.html import formatting
from components.storage.base import Storage
from pipeline.kubeflow.cron import without_seconds
from pipeline.kubeflow.exporter import read_facts
from pipeline.kubeflow.records import RecurringRun, Run, Task
from pipeline.kubeflow.schedules import owner_of
from pipeline.messages import count, duration, line, plural

_NAME, _STATE = 34, 10
# Tasks that Kubeflow adds to the steps of a pipeline.
_MACHINERY = re.compile(r"^(root|executor|exit-handler.*|condition.*|for-loop.*|iteration.*|encode)$|-driver$")


def runs_rows(runs: Sequence[Run], now: datetime) -> Iterator[str]:
    """Yield a line per run, the newest first."""
    if not runs:
        yield "no runs yet; darkroom submit starts one"
        return
    yield f"{'run':{_NAME}} {'state':{_STATE}} {'took':12} id"
    for run in runs:
        took = _took(run.created, run.finished, now)
        yield f"{_cut(run.name):{_NAME}} {run.state.lower():{_STATE}} {took:12} {run.id[:18]}"


def run_rows(run: Run, now: datetime) -> Iterator[str]:
    """Yield what one run is, and how far its steps are."""
    yield f"run         {line(run.name)}"
    yield f"id          {run.id}"
    yield f"state       {run.state.lower()}, {_took(run.created, run.finished, now)}"
    if run.error:
        yield f"error       {line(run.error)}"
    for name, tasks in _by_step(run.tasks).items():
        yield f"  {name:<14} {_progress(tasks):22} {_span(tasks, now)}".rstrip()
        yield from (f"    {line(task.error)}" for task in tasks if task.error)


def recurring_rows(recurring: Sequence[RecurringRun]) -> Iterator[str]:
    """Yield a line per recurring run."""
    if not recurring:
        yield "no recurring runs; darkroom schedule set makes one"
        return
    yield f"{'name':24} {'cron':20} {'state':8} {'of':24}"
    for one in sorted(recurring, key=lambda one: one.name):
        owner = owner_of(one.description) or "others, not darkroom"
        state = "enabled" if one.enabled else "paused"
        cron = _cut(without_seconds(one.cron), 20)
        yield f"{_cut(one.name, 24):24} {cron:20} {state:8} {_cut(owner, 24):24}".rstrip()


def training_rows(run: Storage) -> Iterator[str]:
    """Yield how training gets on, from the run's own records.

    Raises:
        DarkroomError: If they cannot be read.
    """
    facts, config = read_facts(run).values, run.read_object("config.json")
    if "step" not in facts:
        yield "training    not begun"
        return
    step, steps = int(facts["step"]), int(facts.get("steps", facts["step"]))
    parts = [f"step {count(step)} of {count(steps)}"]
    if "loss" in facts:
        parts.append(f"loss {facts['loss']:.4g}")
    rate = facts.get("samples_per_second", 0.0)
    if rate > 0:
        parts.append(f"{formatting.number(rate)} images/s")
        if step < steps and facts["training"]:
            parts.append(f"{duration((steps - step) * config['train']['global_batch'] / rate)} to go")
    yield f"training    {', '.join(parts)}".replace(formatting.SPACE, " ")
    spent = formatting.usd(facts.get("spent_usd", 0.0))
    budget = f" of {formatting.usd(facts['budget_usd'])}" if "budget_usd" in facts else ""
    crashes = int(facts["crashes"])
    stops = f"{plural(int(facts['preemptions']), 'preemption')}, {crashes} {'crash' if crashes == 1 else 'crashes'}"
    yield f"            {stops}, {spent}{budget} until now".replace(formatting.SPACE, " ")


def _by_step(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    """Return the tasks of each step in the order in which they began; the pods of a loop are one step."""
    steps: dict[str, list[Task]] = {}
    ours = [task for task in tasks if task.name and not _MACHINERY.search(task.name)]
    for task in sorted(ours, key=lambda task: (task.started is None, task.started)):
        steps.setdefault(re.sub(r"\W.*$|-\d+$", "", task.name), []).append(task)
    return steps


def _progress(tasks: Sequence[Task]) -> str:
    states = [task.state.lower() for task in tasks]
    kinds = dict.fromkeys(states)
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds)


def _span(tasks: Sequence[Task], now: datetime) -> str:
    started = [task.started for task in tasks if task.started is not None]
    if not started:
        return ""
    ended = [task.ended for task in tasks if task.ended is not None]
    return _took(min(started), max(ended) if len(ended) == len(tasks) else None, now)


def _took(began: datetime | None, ended: datetime | None, now: datetime) -> str:
    return duration(max(0.0, ((ended or now) - began).total_seconds())) if began is not None else ""


def _cut(text: str, width: int = _NAME) -> str:
    whole = line(text)
    return whole if len(whole) <= width else f"{whole[: width - 1]}…"
