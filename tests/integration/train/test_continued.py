"""A run that continues another one begins with its weights, moments and average, and goes on in its order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.model import checkpoints

pytestmark = pytest.mark.slow

CONSTANT = ("optimizer.schedule=constant", "checkpoint.every=10", "ranks=1")


def continued(workshop: Any, run: str, encoding: str = "key", **changes: Any) -> tuple[str, ...]:
    newest = checkpoints.newest(workshop.run(run))
    assert newest is not None
    values = {"run": run, "step": newest.step, "checkpoint": newest.digest, "encoding": encoding, **changes}
    return tuple(f"continued.{name}={json.dumps(value)}" for name, value in values.items())


def test_with_a_constant_rate_it_ends_as_one_run_of_that_length(workshop: Any) -> None:
    assert workshop.train("whole", *CONSTANT, "steps=20").code == 0
    assert workshop.train("first", *CONSTANT, "steps=10").code == 0
    before = workshop.state("first")
    ended = workshop.train("second", *CONSTANT, "steps=20", *continued(workshop, "first"))
    assert ended.code == 0, ended.output
    assert [(event["run"], event["step"]) for event in ended.events_named("continued")] == [("first", 10)]
    assert workshop.state("second") == workshop.state("whole"), "weights, moments and average are the same bytes"
    assert workshop.losses("second") == workshop.losses("whole")[10:]
    assert workshop.state("first") == before, "the run before stays as it is"


@pytest.mark.proof
def test_what_cannot_be_continued_is_named(workshop: Any) -> None:
    assert workshop.train("before", *CONSTANT, "steps=10").code == 0
    gone = workshop.train("third", *CONSTANT, "steps=20", *continued(workshop, "before", checkpoint="gone"))
    assert gone.code == 65
    assert "the checkpoint of step 10 of run before" in gone.output
    foreign = workshop.train("fourth", *CONSTANT, "steps=20", *continued(workshop, "before", encoding="another"))
    assert foreign.code == 78
    assert "run before was trained on data of encoding another, and this run has key" in foreign.output
