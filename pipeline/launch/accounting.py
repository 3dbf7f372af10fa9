"""The books of a training that both launchers keep: attempts, what each second went into, and what it cost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.accounting.ledger import LEDGER, Pool, append_ledger, attempt_seconds, ledger_lines, read_ledger
from components.errors import EXIT_DONE, ConfigError, DarkroomError, DataError, NotFound, Preempted
from components.model import checkpoints
from components.storage.base import Storage
from pipeline.launch.config import LaunchConfig
from pipeline.launch.policy import Standing

EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
_RECORDS = (EVENTS, METRICS, LEDGER)
_TAIL_BYTES = 1 << 16
_REFUSED: dict[int, type[DarkroomError]] = {error.exit_code: error for error in (ConfigError, DataError)}


@dataclass(frozen=True)
class Machines:
    """What an attempt ran on, and what each machine of it costs, in $ per hour."""

    nodes: int
    pool: Pool
    instance: str | None
    usd_per_hour: float


@dataclass(frozen=True)
class Life:
    """An attempt that has ended; times are in seconds since 1970.

    Attributes:
        number: Its number, from 0.
        began: When its processes were started.
        ended: When the last of them had ended.
        code: The exit code that tells why.
        first: The checkpoint's step that it went on from.
        before: Seconds by state before ``began``.
        told: Events that somebody else than the trainer's own journal told, with their times.
    """

    number: int
    began: float
    ended: float
    code: int
    first: int
    before: Mapping[str, float]
    told: Iterable[Mapping[str, Any]] = ()


def is_same(run: Storage, dataset: str) -> bool:
    """Tell whether a run's records are of the training on this dataset."""
    try:
        return bool(run.read_json("training.json")["dataset"] == dataset)
    except NotFound:
        return False


def begin(run: Storage, dataset: str) -> None:
    """Start the records anew where this training is not the one that they tell of."""
    if not is_same(run, dataset):
        for name in _RECORDS:
            run.delete(name)
        run.delete_tree("samples")
        run.write_json("training.json", {"dataset": dataset})


def close(run: Storage, life: Life, machines: Machines, journal: str = EVENTS) -> dict[str, Any]:
    """Write how an attempt ended, and its lines into the ledger unless they are there.

    Args:
        run: The run's folder.
        life: The attempt.
        machines: What it ran on.
        journal: Where its events go; never where another process may write at the same time.

    Returns:
        What the event ``attempt-ended`` says: ``exit_code``, the last optimizer ``step``, ``steps_lost``.
    """
    saved = committed_step(run)
    last = max([saved, *(step for step in _last_steps(run) if step > life.first)])
    mine = [event for event in lines(run, EVENTS) if life.began <= event["time"] <= life.ended]
    crashed = life.code not in (EXIT_DONE, Preempted.exit_code)
    seconds = attempt_seconds(mine, life.began, life.ended, saved, crashed)
    for state, length in life.before.items():
        seconds[state] += length
    priced = (machines.nodes, machines.pool, machines.instance, machines.usd_per_hour)
    append_ledger(run, ledger_lines(life.number, seconds, *priced))
    told = {"event": "attempt-ended", "attempt": life.number}
    ended = {"exit_code": life.code, "step": last, "steps_lost": max(0, last - saved)}
    for event in lines(run, journal):
        if told.items() <= event.items():  # it is in the books: whoever wrote it was killed right after
            return {name: event[name] for name in ended}
    record(run, [*life.told, {"time": life.ended, "event": "attempt-ended", **ended}], life.number, journal)
    return ended


def record(run: Storage, events: Iterable[Mapping[str, Any]], attempt: int, journal: str = EVENTS) -> None:
    """Add events of an attempt, but those that are there: a launcher that was killed does its last deed once more."""
    known = {json.dumps(event) for event in lines(run, journal)}
    new = [{**event, "attempt": attempt} for event in events]
    run.append_lines(journal, [event for event in new if json.dumps(event) not in known])


def merge(run: Storage, journal: str) -> None:
    """Move a journal into the run's events, in the order of time; nobody else may write these now."""
    kept = lines(run, journal)
    if kept:
        whole = {json.dumps(event): event for event in [*lines(run, EVENTS), *kept]}
        run.write_lines(EVENTS, sorted(whole.values(), key=lambda event: float(event["time"])))
    run.delete(journal)


def told_end(run: Storage, since: float, unknown: int) -> int:
    """Return the exit code that the trainer's own events speak for, or ``unknown``: nobody saw how it ended."""
    told = [event["event"] for event in lines(run, EVENTS) if event["time"] >= since]
    codes = {"preempted": Preempted.exit_code, "finished": EXIT_DONE}
    return next((codes[name] for name in reversed(told) if name in codes), unknown)


def next_attempt(run: Storage) -> int:
    """Return the number of the attempt that comes next."""
    told = [event.get("attempt", -1) for event in lines(run, EVENTS) if event["event"] == "attempt-started"]
    number: int = max([-1, *told, *(line.attempt for line in read_ledger(run))])
    return number + 1


def committed_step(run: Storage) -> int:
    """Return the step of the newest checkpoint that was committed; 0 where there is none."""
    newest = checkpoints.newest(run)
    return newest.step if newest is not None else 0


def lines(run: Storage, key: str) -> list[dict[str, Any]]:
    """Return the lines of a file, but one that was torn when its writer was killed; none where there is no file."""
    try:
        return list(_parsed(run.read(key)))
    except NotFound:
        return []


def refusal(code: int, said: str) -> DarkroomError:
    """Return the error that an exit code stands for which forbids a restart."""
    return _REFUSED.get(code, DarkroomError)(said)


def stopped_at(run: Storage, why: str, launch: LaunchConfig) -> int:
    """Return the step at which training was stopped before its end; it is evaluated as it is.

    Raises:
        DarkroomError: Where nothing was saved, so that there is nothing to evaluate.
    """
    step = committed_step(run)
    if step == 0:
        limit = f"{launch.budget_usd} $" if why == "budget" else f"{launch.deadline_hours} hours"
        raise DarkroomError(
            f"training was stopped by its {why} ({limit}) before it saved anything, so there is nothing to evaluate; "
            f"raise launch.{'budget_usd' if why == 'budget' else 'deadline_hours'}, or save more often "
            "(train.checkpoint.every)"
        )
    return step


def given_up(standing: Standing, code: int, launch: LaunchConfig, said: str) -> DarkroomError:
    """Return the error that ends a training which was started again too often."""
    if standing.fruitless > launch.restarts.max_without_progress:
        return DarkroomError(
            f"training ended with exit code {code}, for the {standing.fruitless}th time without a checkpoint newer "
            f"than step {standing.step}; launch.restarts.max_without_progress is "
            f"{launch.restarts.max_without_progress}. Checkpoint more often (train.checkpoint.every), or find out what "
            f"ends it. Its last words:\n{said}"
        )
    return DarkroomError(
        f"training ended with exit code {code} after {standing.preemptions} preemptions and {standing.crashes} "
        f"crashes; launch.restarts.max_preemptions is {launch.restarts.max_preemptions}, "
        f"launch.restarts.max_crashes is {launch.restarts.max_crashes}. "
        f"Its last words:\n{said}"
    )


def _last_steps(run: Storage) -> list[int]:
    """Return the optimizer steps that the end of the metrics tells of."""
    try:
        size = run.entry(METRICS).size
        tail = run.read(METRICS, max(0, size - _TAIL_BYTES))
    except NotFound:
        return []
    return [int(line["step"]) for line in _parsed(tail)]


def _parsed(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found
