"""The ledger of a training: every second of its wall clock in one state, on nodes with a price.

``runs/<run>/ledger.jsonl`` holds one line per attempt and state. Each line keeps the price of its time, so the cost of
a run does not change when prices change, and its own checksum: a line that a kill has cut off is written again, one
that a disk has changed is an error, since a bill without it would be too low.

The seconds of an attempt come from the trainer's ``events.jsonl``, not from ``metrics.jsonl``: the next attempt removes
the lost steps from that file, perhaps before the launcher reads it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import DamagedFile
from components.storage.base import Storage
from components.storage.checksums import growing_lines, with_checksum

LEDGER = "ledger.jsonl"
_EVENTS = "events.jsonl"
# In the order in which they are shown.
STATES = ("pending", "pulling", "loading", "useful", "saving", "validating", "sampling", "lost", "idle")
# States before there are nodes: nothing is paid for.
FREE = frozenset({"pending"})
# A pool of a cloud: machines that it may take away, or machines that stay.
Pool = Literal["spot", "on-demand"]
LedgerPool = Literal[Pool, "local"]

_PAUSES = {
    "saving": ("checkpoint", "stall_seconds"),
    "validating": ("validation", "seconds"),
    "sampling": ("samples", "seconds"),
}


class LedgerLine(BaseModel):
    """The time that an attempt spent in one state; a line without pool and price (older versions) is local and free."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    attempt: Annotated[int, Field(ge=0, le=10**15, description="number of the attempt, from 0")]
    state: Annotated[str, Field(description="one of STATES; later versions may have more")]
    seconds: Annotated[float, Field(ge=0, le=1e9, description="wall clock, in seconds")]
    nodes: Annotated[int, Field(ge=0, le=10**15, description="nodes that it had, or waited for")] = 1
    pool: Annotated[LedgerPool, Field(description="pool of the nodes")] = "local"
    instance: Annotated[str | None, Field(description="machine type of the nodes, such as p4d.24xlarge")] = None
    usd_per_hour: Annotated[float, Field(ge=0, le=1e9, description="price of one node, in US dollars per hour")] = 0.0

    @property
    def node_seconds(self) -> float:
        """Seconds times nodes."""
        return self.seconds * self.nodes

    @property
    def usd(self) -> float:
        """Cost of this time in US dollars."""
        return self.seconds / 3600 * self.nodes * self.usd_per_hour


class Total(NamedTuple):
    """The sums of some lines: wall clock in seconds, node-seconds, US dollars."""

    seconds: float
    node_seconds: float
    usd: float


def ledger_lines(
    attempt: int,
    seconds: Mapping[str, float],
    nodes: int = 1,
    pool: LedgerPool = "local",
    instance: str | None = None,
    usd_per_hour: float = 0.0,
) -> list[LedgerLine]:
    """Return an attempt's lines, one per state, in whole milliseconds that add up to the wall clock.

    Args:
        attempt: Its number, from 0.
        seconds: Wall clock by state; a state that is missing took no time.
        nodes: How many nodes it had.
        pool: Their pool.
        instance: Their machine type.
        usd_per_hour: Price of one node; nothing is paid in ``pending``.
    """
    assert seconds.keys() <= set(STATES), f"unknown states: {seconds.keys() - set(STATES)}"
    # Rounding the end of each state instead of its length keeps errors from adding up.
    end, lines = 0.0, []
    for state in STATES:
        begin, end = end, end + seconds.get(state, 0.0)
        length = (round(end * 1000) - round(begin * 1000)) / 1000
        price = 0.0 if state in FREE else usd_per_hour
        lines.append(LedgerLine(attempt=attempt, state=state, seconds=length, nodes=nodes, pool=pool,
                                instance=instance, usd_per_hour=price))  # fmt: skip
    return lines


def append_ledger(run: Storage, lines: Iterable[LedgerLine]) -> None:
    """Add lines to the ledger of a run's folder; a line whose attempt and state it already has is not added again.

    A writer that was killed may have written only some lines of an attempt, the last one cut off. Adding the whole
    attempt again completes it, and every second is counted once.

    Raises:
        DataError: If a line of the existing ledger is not valid.
    """
    existing = {(line.attempt, line.state) for line in _written_lines(run)}
    new = [line.model_dump() for line in lines if (line.attempt, line.state) not in existing]
    if not new:
        return
    drop_torn_line(run, LEDGER)
    run.append_lines(LEDGER, map(with_checksum, new))


def drop_torn_line(run: Storage, key: str) -> None:
    """Remove the last line of a file if its writer was killed in it: the next line must not become a part of it."""
    data = run.read(key) if run.exists(key) else b""
    if data and not data.endswith(b"\n"):
        run.write(key, data[: data.rfind(b"\n") + 1])


def read_ledger(run: Storage) -> tuple[LedgerLine, ...]:
    """Return the lines of a run's ledger; none if there is no ledger yet.

    A last line that was cut off when its writer was killed is skipped.

    Raises:
        DamagedFile: If any other line is not what was written, or lines of an attempt that has ended are missing; the
            bill would be too low.
    """
    lines = _written_lines(run)
    # An attempt's lines are written in the order of the states, and before the event of its end.
    if missing := _ended_attempts(run) - {line.attempt for line in lines if line.state == STATES[-1]}:
        raise DamagedFile(
            f"{LEDGER} in {run.url} is damaged: attempt {min(missing)} has ended, and not all its lines are there; "
            f"restore it from a copy, or delete that attempt's attempt-ended from {_EVENTS}, and its seconds are "
            "missing from the bill"
        )
    return lines


def _written_lines(run: Storage) -> tuple[LedgerLine, ...]:
    data = run.read(LEDGER) if run.exists(LEDGER) else b""
    try:
        return tuple(_line(number, values) for number, values in growing_lines(data))
    except ValueError as error:
        raise DamagedFile(
            f"{LEDGER} in {run.url} is damaged, {error}; restore it from a copy, or delete that line, and its seconds "
            "are missing from the bill"
        ) from None


def _ended_attempts(run: Storage) -> set[int]:
    """Return the attempts whose end is in the events: their lines were written before."""
    data = run.read(_EVENTS) if run.exists(_EVENTS) else b""
    attempts = set()
    for line in data.split(b"\n"):
        if b"attempt-ended" in line:
            with contextlib.suppress(ValueError, RecursionError):  # torn
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "attempt-ended":
                    number = event.get("attempt")
                    attempts |= {number} if isinstance(number, int) else set()
    return attempts


def _line(number: int, values: Mapping[str, Any]) -> LedgerLine:
    try:
        return LedgerLine.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"])) or "line"
        raise ValueError(f"line {number}: it is not valid ({field}: {problem['msg']})") from None


def total(lines: Iterable[LedgerLine]) -> Total:
    """Return the sums of lines, each rounded once at its end."""
    lines = list(lines)
    return Total(
        math.fsum(line.seconds for line in lines),
        math.fsum(line.node_seconds for line in lines),
        math.fsum(line.usd for line in lines),
    )


def spent(lines: Iterable[LedgerLine]) -> float:
    """Return the cost of lines in US dollars."""
    return total(lines).usd


def by_state(lines: Iterable[LedgerLine]) -> dict[str, Total]:
    """Return the sums of each state, in the order of the states; empty if there are no lines."""
    lines = list(lines)
    states = dict.fromkeys([*STATES, *(line.state for line in lines)]) if lines else {}
    return {state: total(line for line in lines if line.state == state) for state in states}


def by_pool(lines: Iterable[LedgerLine]) -> dict[LedgerPool, Total]:
    """Return the sums of each pool, in the order of their first line."""
    lines = list(lines)
    pools = dict.fromkeys(line.pool for line in lines)
    return {pool: total(line for line in lines if line.pool == pool) for pool in pools}


def by_attempt(lines: Iterable[LedgerLine]) -> dict[int, tuple[LedgerLine, ...]]:
    """Return the lines of each attempt, in the order of the attempts."""
    lines = list(lines)
    numbers = sorted({line.attempt for line in lines})
    return {number: tuple(line for line in lines if line.attempt == number) for number in numbers}


def goodput(lines: Iterable[LedgerLine]) -> float | None:
    """Return the useful share of the wall clock, 0..1; None if no time has passed."""
    lines = list(lines)
    wall = total(lines).seconds
    return total(line for line in lines if line.state == "useful").seconds / wall if wall > 0 else None


def attempt_seconds(
    events: Iterable[Mapping[str, Any]], start: float, end: float, committed_step: int, crashed: bool
) -> dict[str, float]:
    """Return the seconds of each state; they add up to the attempt's wall clock.

    Args:
        events: The trainer's events of this attempt; other events are ignored.
        start: When its first process was started, in seconds since 1970.
        end: When its last process had ended.
        committed_step: The optimizer step of the newest committed checkpoint at its end.
        crashed: Whether it ended without saving.

    Returns:
        ``loading`` until the first step begins; ``useful``: steps that a committed checkpoint holds; ``saving``,
        ``validating`` and ``sampling``: pauses of training; ``lost``: steps that no checkpoint holds and, after a
        crash, all time until it was noticed; ``idle``: the rest, such as shutting down.
    """
    wall = max(end - start, 0.0)
    seconds = dict.fromkeys(STATES, 0.0)
    events = list(events)
    first_step = next((event["time"] for event in events if event["event"] == "training"), end)
    seconds["loading"] = min(max(first_step - start, 0.0), wall)
    after_loading = wall - seconds["loading"]
    for state, (name, length) in _PAUSES.items():
        seconds[state] = sum(float(event.get(length) or 0.0) for event in events if event["event"] == name)
    for event in events:
        if event["event"] == "checkpoint":
            state = "useful" if event["step"] <= committed_step else "lost"
            seconds[state] += float(event.get("trained_seconds") or 0.0)
    reported = sum(seconds.values()) - seconds["loading"]
    if reported > after_loading:  # the clocks of two nodes differ
        shrink = {state: seconds[state] * after_loading / reported for state in STATES if state != "loading"}
        seconds.update(shrink)
    seconds["lost" if crashed else "idle"] += max(after_loading - reported, 0.0)
    return seconds
