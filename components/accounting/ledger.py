"""The ledger of a training: every second of its wall clock in one state, on machines of a known price.

``runs/<run>/ledger.jsonl`` holds one line per attempt and state. The price that held is frozen into the line, so what
a run cost does not change when prices do. What the trainer writes to ``events.jsonl`` suffices to account for an
attempt. ``metrics.jsonl`` does not: the next attempt takes the lost steps off it, and whoever keeps the ledger may come
later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import DataError
from components.storage.base import Storage

LEDGER = "ledger.jsonl"
# In the order in which they are shown.
STATES = ("pending", "pulling", "loading", "useful", "saving", "validating", "sampling", "lost", "idle")
# In these no machine has been given yet, so that none is paid for.
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
    """A stretch of an attempt's wall clock; a line from before there were pools and prices reads as local and free."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    attempt: Annotated[int, Field(ge=0, le=10**15, description="number of the attempt, from 0")]
    state: Annotated[str, Field(description="one of STATES; a later version may know more")]
    seconds: Annotated[float, Field(ge=0, le=1e9, description="wall clock, in seconds")]
    nodes: Annotated[int, Field(ge=0, le=10**15, description="machines that were held, or waited for")] = 1
    pool: Annotated[LedgerPool, Field(description="where the machines come from")] = "local"
    instance: Annotated[str | None, Field(description="type of the machines, such as p4d.24xlarge")] = None
    usd_per_hour: Annotated[float, Field(ge=0, le=1e9, description="price of one node, in US dollars per hour")] = 0.0

    @property
    def node_seconds(self) -> float:
        """Seconds times nodes."""
        return self.seconds * self.nodes

    @property
    def usd(self) -> float:
        """What the stretch cost, in US dollars."""
        return self.seconds / 3600 * self.nodes * self.usd_per_hour


class Total(NamedTuple):
    """What some lines come to: wall clock in seconds, node-seconds, US dollars."""

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
    """Return an attempt's lines, one per state, in whole milliseconds that sum to those of the wall clock.

    Args:
        attempt: Its number, from 0.
        seconds: Wall clock by state; states that are left out took no time.
        nodes: How many machines it held.
        pool: Where they come from.
        instance: Their type.
        usd_per_hour: What each costs; nothing is paid in ``pending``.
    """
    assert seconds.keys() <= set(STATES), f"unknown states: {seconds.keys() - set(STATES)}"
    # The end of each state is rounded, not its length: so the error never adds up.
    ends, lines = 0.0, []
    for state in STATES:
        begin, ends = ends, ends + seconds.get(state, 0.0)
        length = (round(ends * 1000) - round(begin * 1000)) / 1000
        price = 0.0 if state in FREE else usd_per_hour
        lines.append(LedgerLine(attempt=attempt, state=state, seconds=length, nodes=nodes, pool=pool,
                                instance=instance, usd_per_hour=price))  # fmt: skip
    return lines


def append_ledger(run: Storage, lines: Iterable[LedgerLine]) -> None:
    """Add lines to the ledger of a run's folder, but those of an attempt and state that are there.

    A writer that was killed may have written some of an attempt's lines, and torn one: it is written again as a whole,
    and every second is counted once.

    Raises:
        DataError: Where a line that is there is no line of a ledger.
    """
    known = {(line.attempt, line.state) for line in read_ledger(run)}
    new = [line.model_dump() for line in lines if (line.attempt, line.state) not in known]
    if not new:
        return
    if run.exists(LEDGER):
        size = run.entry(LEDGER).size
        if size and run.read(LEDGER, size - 1, 1) != b"\n":
            run.append(LEDGER, b"\n")
    run.append_lines(LEDGER, new)


def read_ledger(run: Storage) -> tuple[LedgerLine, ...]:
    """Return the lines of a run's ledger; none where there is no ledger yet.

    A line that was torn when its writer was killed is left out: it never was whole.

    Raises:
        DataError: Where a line is whole but is no line of a ledger; a bill must not leave out what it cannot read.
    """
    if not run.exists(LEDGER):
        return ()
    found = enumerate(run.read(LEDGER).split(b"\n"), start=1)
    lines = (_line(text, f"{LEDGER}:{number} in {run.url}") for number, text in found)
    return tuple(line for line in lines if line is not None)


def _line(text: bytes, where: str) -> LedgerLine | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    try:
        return LedgerLine.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        what = ".".join(map(str, problem["loc"])) or "it"
        raise DataError(f"{where} is no line of a ledger ({what}: {problem['msg']}); mend or delete it") from None


def total(lines: Iterable[LedgerLine]) -> Total:
    """Return what lines come to; each sum is rounded once, at its end."""
    known = list(lines)
    return Total(
        math.fsum(line.seconds for line in known),
        math.fsum(line.node_seconds for line in known),
        math.fsum(line.usd for line in known),
    )


def spent(lines: Iterable[LedgerLine]) -> float:
    """Return what lines cost, in US dollars."""
    return total(lines).usd


def by_state(lines: Iterable[LedgerLine]) -> dict[str, Total]:
    """Return what each state comes to, in the order of the states; empty where there are no lines."""
    known = list(lines)
    states = dict.fromkeys([*STATES, *(line.state for line in known)]) if known else {}
    return {state: total(line for line in known if line.state == state) for state in states}


def by_pool(lines: Iterable[LedgerLine]) -> dict[LedgerPool, Total]:
    """Return what the machines of each pool come to, in the order of their first line."""
    known = list(lines)
    pools = dict.fromkeys(line.pool for line in known)
    return {pool: total(line for line in known if line.pool == pool) for pool in pools}


def by_attempt(lines: Iterable[LedgerLine]) -> dict[int, tuple[LedgerLine, ...]]:
    """Return the lines of each attempt, in the order of the attempts."""
    known = list(lines)
    return {number: tuple(line for line in known if line.attempt == number)
            for number in sorted({line.attempt for line in known})}  # fmt: skip


def goodput(lines: Iterable[LedgerLine]) -> float | None:
    """Return the share of wall clock that was useful, 0..1; None where no time has passed."""
    known = list(lines)
    whole = total(known).seconds
    return total(line for line in known if line.state == "useful").seconds / whole if whole > 0 else None


def attempt_seconds(
    events: Iterable[Mapping[str, Any]], began: float, ended: float, kept: int, crashed: bool
) -> dict[str, float]:
    """Return the seconds of each state; they add up to the attempt's wall clock.

    Args:
        events: The trainer's, of this attempt; others are not looked at.
        began: When its first process was started, in seconds since 1970.
        ended: When its last process had ended.
        kept: The optimizer step of the newest committed checkpoint once it had ended.
        crashed: Whether it ended without saving.

    Returns:
        ``loading`` until the first step begins; ``useful``: steps that a committed checkpoint holds; ``saving``,
        ``validating`` and ``sampling``: what training stood still for; ``lost``: steps that no checkpoint holds and,
        after a crash, all time until it was noticed; ``idle``: the rest, such as shutting down.
    """
    wall = max(ended - began, 0.0)
    seconds = dict.fromkeys(STATES, 0.0)
    known = list(events)
    training = next((event["time"] for event in known if event["event"] == "training"), ended)
    seconds["loading"] = min(max(training - began, 0.0), wall)
    rest = wall - seconds["loading"]
    for state, (name, length) in _PAUSES.items():
        seconds[state] = sum(float(event.get(length) or 0.0) for event in known if event["event"] == name)
    for event in known:
        if event["event"] == "checkpoint":
            seconds["useful" if event["step"] <= kept else "lost"] += float(event.get("trained_seconds") or 0.0)
    told = sum(seconds.values()) - seconds["loading"]
    if told > rest:  # clocks of two machines disagree
        seconds.update({state: seconds[state] * rest / told for state in STATES if state != "loading"})
    seconds["lost" if crashed else "idle"] += max(rest - told, 0.0)
    return seconds
