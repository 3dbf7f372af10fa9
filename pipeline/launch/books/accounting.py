"""The books of a training that both launchers keep: its attempts, where each second went, and what it cost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.accounting.ledger import (
    LEDGER,
    LedgerLine,
    LedgerPool,
    append_ledger,
    attempt_seconds,
    drop_torn_line,
    ledger_lines,
    read_ledger,
)
from components.errors import EXIT_DONE, NotFound, Preempted
from components.model import checkpoints
from components.storage.base import Storage

EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
# Only a launcher on a cluster writes this file; once nothing runs, it is merged into the run's events.
LAUNCH_EVENTS = "launch-events.jsonl"
# What the books of a training consist of, the ledger last: while it is there, they have not been moved away.
RECORDS = (EVENTS, LAUNCH_EVENTS, METRICS, "validation.jsonl", "report.html", "report.json", LEDGER)
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class PricedNodes:
    """The nodes of an attempt, and the price of each in $ per hour."""

    count: int
    pool: LedgerPool
    instance: str | None
    usd_per_hour: float

    def ledger_lines(self, attempt: int, seconds: Mapping[str, float]) -> list[LedgerLine]:
        """Return the ledger's lines for an attempt on these nodes; ``seconds`` are by state."""
        return ledger_lines(attempt, seconds, self.count, self.pool, self.instance, self.usd_per_hour)


@dataclass(frozen=True)
class EndedAttempt:
    """An attempt that has ended; times are in seconds since 1970.

    Attributes:
        number: Its number, from 0.
        started_at: When its processes were started.
        ended_at: When the last of them ended.
        exit_code: The exit code that explains why.
        start_step: Step of the checkpoint that it resumed from.
        earlier_seconds: Seconds by state before ``started_at``.
        events: Events with their times that the trainer did not write itself.
    """

    number: int
    started_at: float
    ended_at: float
    exit_code: int
    start_step: int
    earlier_seconds: Mapping[str, float]
    events: Iterable[Mapping[str, Any]] = ()


def close_attempt(run: Storage, attempt: EndedAttempt, nodes: PricedNodes, key: str = EVENTS) -> dict[str, Any]:
    """Write an attempt's lines into the ledger and its end into the events, unless they are there already.

    Args:
        run: The run's folder.
        attempt: The attempt.
        nodes: What it ran on.
        key: The file for its events; no other process may write to it at the same time.

    Returns:
        The fields of the event ``attempt-ended``: ``exit_code``, the last optimizer ``step``, ``steps_lost``.
    """
    saved_step = committed_step(run)
    last_step = max([saved_step, attempt.start_step, *(step for step in _last_steps(run) if step > attempt.start_step)])
    kept_step = max(saved_step, attempt.start_step)  # a run that continues another one begins with steps of that one
    append_ledger(run, nodes.ledger_lines(attempt.number, _seconds_by_state(run, attempt, saved_step)))
    fields = {"exit_code": attempt.exit_code, "step": last_step, "steps_lost": max(0, last_step - kept_step)}
    for event in read_lines(run, key):
        # A launcher that was killed right after it had written this does not write it again.
        if event.get("event") == "attempt-ended" and event.get("attempt") == attempt.number:
            return {name: event[name] for name in fields}
    end = {"time": attempt.ended_at, "event": "attempt-ended", **fields}
    append_events(run, [*attempt.events, end], attempt.number, key)
    return fields


def _seconds_by_state(run: Storage, attempt: EndedAttempt, saved_step: int) -> dict[str, float]:
    began, ended = attempt.started_at, attempt.ended_at
    events = [event for event in read_lines(run, EVENTS) if began <= event["time"] <= ended]
    has_crashed = attempt.exit_code not in (EXIT_DONE, Preempted.exit_code)
    seconds = attempt_seconds(events, began, ended, saved_step, has_crashed)
    for state, length in attempt.earlier_seconds.items():
        seconds[state] += length
    return seconds


def append_events(run: Storage, events: Iterable[Mapping[str, Any]], attempt: int, key: str = EVENTS) -> None:
    """Append the events of an attempt that are not there yet: a launcher that was killed repeats its last action."""
    existing = {json.dumps(event) for event in read_lines(run, key)}
    numbered = [{**event, "attempt": attempt} for event in events]
    drop_torn_line(run, key)
    run.append_lines(key, [event for event in numbered if json.dumps(event) not in existing])


def merge_events(run: Storage, key: str) -> None:
    """Move the events of a file into the run's events, ordered by time; no other process may write to these now."""
    events = read_lines(run, key)
    if events:
        merged = {json.dumps(event): event for event in [*read_lines(run, EVENTS), *events]}
        run.write_lines(EVENTS, sorted(merged.values(), key=lambda event: float(event["time"])))
    run.delete(key)


def exit_code_from_events(run: Storage, since: float, default: int) -> int:
    """Return the exit code that the trainer's own events imply; ``default`` if they do not say how it ended."""
    names = [event["event"] for event in read_lines(run, EVENTS) if event["time"] >= since]
    codes = {"preempted": Preempted.exit_code, "finished": EXIT_DONE}
    return next((codes[name] for name in reversed(names) if name in codes), default)


def first_started_at(run: Storage, default: float) -> float:
    """Return when the first attempt was started, in seconds since 1970."""
    events = read_lines(run, EVENTS)
    return min((float(event["time"]) for event in events if event["event"] == "attempt-started"), default=default)


def last_sign(run: Storage, since: float, until: float) -> float:
    """Return when the trainer last wrote events or metrics, in seconds since 1970; ``since`` if it did not."""
    times = [float(event["time"]) for event in read_lines(run, EVENTS)]
    times += [dated.written for dated in run.list_dated() if dated.key == METRICS]
    return max((time for time in times if since <= time <= until), default=since)


def last_event_within(run: Storage, end: float, seconds: float) -> float:
    """Return when the trainer wrote its last event before ``end + seconds``; ``end`` if none is later than that.

    Args:
        run: The run's folder.
        end: When the trainer ended, in seconds since 1970, cut off to whole ``seconds``.
        seconds: How exact ``end`` is.
    """
    times = (float(event["time"]) for event in read_lines(run, EVENTS))
    return max((time for time in times if end <= time < end + seconds), default=end)


def next_attempt_number(run: Storage) -> int:
    """Return the number of the next attempt."""
    events = [event for event in read_lines(run, EVENTS) if event["event"] == "attempt-started"]
    numbers = [*(int(event.get("attempt", -1)) for event in events), *(line.attempt for line in read_ledger(run))]
    return max([-1, *numbers]) + 1


def committed_step(run: Storage) -> int:
    """Return the step of the newest committed checkpoint; 0 if there is none."""
    newest = checkpoints.newest(run)
    return newest.step if newest is not None else 0


def read_lines(run: Storage, key: str) -> list[dict[str, Any]]:
    """Return the lines of a file without those that were torn when their writer was killed; empty without a file."""
    try:
        return list(parse_lines(run.read(key)))
    except NotFound:
        return []


def parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield each line that is a JSON object."""
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _last_steps(run: Storage) -> list[int]:
    """Return the optimizer steps of the last metrics."""
    try:
        size = run.entry(METRICS).size
        data = run.read(METRICS, max(0, size - _TAIL_BYTES))
    except NotFound:
        return []
    return [int(line["step"]) for line in parse_lines(data)]
