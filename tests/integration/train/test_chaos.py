"""Random SIGKILLs, of one rank or of the whole gang, at any moment: while loading, training or saving.

A few of them run in ``make test``; ``make chaos`` runs at least 20 for every ZeRO stage and precision. The moment of
each kill is drawn from a seed, as a delay after an event that the trainer tells, so every phase is hit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
from typing import Any

import pytest

from components.errors import OutOfMemory, Preempted
from components.model import checkpoints

KILLS = int(os.environ.get("CHAOS_KILLS", "0"))
SETTINGS = ("steps=60", "checkpoint.every=2", "checkpoint.keep=3")


def strike(workshop: Any, name: str, dice: random.Random, *settings: str) -> Any:
    """Start the gang, and kill one rank or all of it at a random moment of a random phase."""
    phase = dice.choice(["loading", "training", "saving"])
    step = dice.randint(1, 12)
    delay = dice.uniform(0.0, {"loading": 6.0, "training": 0.1, "saving": 0.02}[phase])
    whole_gang = dice.random() < 0.5
    rank = dice.randrange(2)
    started = 0

    def hear(gang: Any, event: dict[str, Any]) -> bool:
        """Tell whether this is the event after which the delay begins to run."""
        nonlocal started
        if event.get("event") in ("step", "checkpoint"):
            started += 1
        awaited = {"loading": "rank-started", "training": "step", "saving": "checkpoint"}[phase]
        return event.get("event") == awaited and len(gang.ranks) == 2 and (phase == "loading" or started >= step)

    def kill(gang: Any) -> None:
        ranks = gang.ranks if whole_gang else {rank: gang.ranks[rank]}
        for pid in ranks.values():
            with contextlib.suppress(ProcessLookupError):  # it ended by itself in the meantime
                os.kill(pid, signal.SIGKILL)

    def later(gang: Any) -> None:
        threading.Timer(delay, kill, [gang]).start()

    return workshop.train_until(name, *settings, hear=hear, act=later)


def survive(workshop: Any, name: str, kills: int, *settings: str) -> int:
    """Kill until it has been killed often enough, then let it finish; return how many kills hit a living gang."""
    dice = random.Random(name)
    hit = 0
    while hit < kills:
        ended = strike(workshop, name, dice, *SETTINGS, *settings)
        assert ended.code not in (Preempted.exit_code, OutOfMemory.exit_code), ended.output
        if ended.code == 0:
            break  # it was faster; what is finished cannot be killed
        hit += 1
    ended = workshop.train(name, *SETTINGS, *settings)
    assert ended.code == 0, ended.output
    return hit


@pytest.mark.slow
def test_a_few_random_kills_change_no_byte(workshop: Any) -> None:
    straight = workshop.train("calm", *SETTINGS)
    assert straight.code == 0, straight.output
    assert survive(workshop, "stormy", 2) >= 1
    assert workshop.state("stormy") == workshop.state("calm")
    assert workshop.losses("stormy") == workshop.losses("calm")


@pytest.mark.timeout(600 + 180 * KILLS)
@pytest.mark.skipif(not KILLS, reason="takes most of an hour; make chaos runs it")
@pytest.mark.parametrize(
    ("stage", "precision"), [*itertools.product([0, 1, 2, 3], ["fp32", "bf16"]), (0, "fp16"), (2, "fp16")]
)
def test_many_random_kills_change_no_byte(workshop: Any, stage: int, precision: str) -> None:
    settings = ("steps=200", f"zero_stage={stage}", f"precision={precision}")
    calm, stormy = f"calm-{stage}-{precision}", f"stormy-{stage}-{precision}"
    assert workshop.train(calm, *SETTINGS, *settings).code == 0
    hit = survive(workshop, stormy, KILLS, *settings)
    assert hit >= KILLS, f"only {hit} kills hit a living gang"
    assert workshop.state(stormy) == workshop.state(calm)
    assert workshop.losses(stormy) == workshop.losses(calm)
    newest = [checkpoints.newest(workshop.run(name)) for name in (stormy, calm)]
    assert len({one.digest for one in newest if one is not None}) == 1
