"""The account of one attempt to train: every second of its wall clock in one state, told from its events (pure).

What the trainer writes to ``events.jsonl`` suffices. ``metrics.jsonl`` does not: the next attempt takes the lost steps
off it, and whoever keeps the ledger may come later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# In the order in which they are shown. Not in an attempt, but between two, all time is idle.
STATES = ("loading", "useful", "saving", "validating", "sampling", "lost", "idle")

_PAUSES = {
    "saving": ("checkpoint", "stall_seconds"),
    "validating": ("validation", "seconds"),
    "sampling": ("samples", "seconds"),
}


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
