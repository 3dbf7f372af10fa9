"""The local launcher trains to the end through crashes and notices, and accounts for every second."""

from __future__ import annotations

import io
import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from components.accounting.ledger import read_ledger, spent
from components.dataset.versions import make_dataset, read_dataset, write_dataset
from components.errors import DarkroomError, DataError, Preempted
from components.model import checkpoints
from components.progress import Progress
from pipeline.config import RunConfig
from pipeline.launch.context import LaunchContext
from pipeline.launch.local_launcher import launch
from tests.integration.launch.act_at_step import ActAtStep

pytestmark = pytest.mark.slow


def settings(workshop: Any, name: str, ranks: int = 1, **launch_settings: Any) -> RunConfig:
    train = {**workshop.settings, "steps": 20, "ranks": ranks}
    return RunConfig.parse(
        {"name": name, "seed": 5, "ingest": {"source": "unused"}, "train": train, "launch": launch_settings}
    )


def start(
    workshop: Any, config: RunConfig, progress: Progress | None = None, encoding_key: str = "key", **clocks: Any
) -> dict[str, Any]:
    data = ("workdir:models/base/tiny", encoding_key, workshop.digest(encoding_key))
    progress = progress if progress is not None else Progress(io.StringIO())
    return launch(LaunchContext(config, workshop.workdir, *data, progress, **clocks))


def test_a_crash_is_survived_and_paid_for(workshop: Any) -> None:
    config = settings(workshop, "crash")
    result = start(workshop, config, ActAtStep(12, lambda ranks: os.kill(ranks[0], signal.SIGKILL)))
    assert result == {"step": 20, "attempts": 2, "stopped": None}

    run = workshop.run(config.run)
    ends = [event for event in run.read_lines("events.jsonl") if event["event"] == "attempt-ended"]
    assert [(event["attempt"], event["exit_code"]) for event in ends] == [(0, 128 + signal.SIGKILL), (1, 0)]
    assert 1 <= ends[0]["steps_lost"] <= 7
    assert ends[1]["steps_lost"] == 0

    ledger = list(run.read_lines("ledger.jsonl"))
    assert sum(line["seconds"] for line in ledger if line["state"] == "lost") > 0
    steps = list(run.read_lines("metrics.jsonl"))
    useful = sum(line["seconds"] for line in ledger if line["state"] == "useful")
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert useful == pytest.approx(sum(line["seconds"] for line in steps), abs=0.1)


def test_the_notice_of_the_drill_comes_once_and_loses_nothing(workshop: Any) -> None:
    config = settings(workshop, "drill", ranks=2, spot_drill={"step": 8, "rank": 1})
    assert start(workshop, config)["attempts"] == 2
    events = list(workshop.run(config.run).read_lines("events.jsonl"))
    assert [event["rank"] for event in events if event["event"] == "spot-notice"] == [1]
    ends = [event for event in events if event["event"] == "attempt-ended"]
    assert [(event["exit_code"], event["steps_lost"]) for event in ends] == [(75, 0), (0, 0)]


@pytest.mark.proof
def test_too_many_crashes_end_the_training(workshop: Any) -> None:
    config = settings(workshop, "hopeless", restarts={"max_crashes": 0})
    with pytest.raises(DarkroomError, match=r"137.* 0 preemptions .* 1 crashes.*launch\.restarts\.max_crashes"):
        start(workshop, config, ActAtStep(1, lambda ranks: os.kill(ranks[0], signal.SIGKILL)))


def test_bad_data_are_not_tried_again(workshop: Any) -> None:
    source, target = (workshop.workdir.child(f"datasets/{key}") for key in ("key", "holes"))
    for entry in source.list():
        target.write(entry.key, source.read(entry.key))
    dataset = read_dataset(target)
    assert dataset is not None
    for shard in dataset.shards:
        target.delete(f"{shard.name}.tar")
    with pytest.raises(DataError, match=r"shards/16x16/\w+"):
        start(workshop, settings(workshop, "holes"), encoding_key="holes")


def test_a_training_goes_on_with_the_dataset_version_that_it_started_with(workshop: Any) -> None:
    source, target = (workshop.workdir.child(f"datasets/{key}") for key in ("key", "moving"))
    for entry in source.list():
        target.write(entry.key, source.read(entry.key))
    before = read_dataset(target)
    assert before is not None

    def commit_another(ranks: dict[int, int]) -> None:
        shard = replace(before.shards[0], tombstones=(0, 1))
        write_dataset(target, make_dataset("key", {}, [shard, *before.shards[1:]], rejected=0))
        os.kill(ranks[0], signal.SIGKILL)

    config = settings(workshop, "moving")
    assert start(workshop, config, ActAtStep(9, commit_another), encoding_key="moving")["attempts"] == 2
    assert workshop.digest("moving") != before.digest
    run = workshop.run(config.run)
    assert [event["step"] for event in run.read_lines("events.jsonl") if event["event"] == "resumed"] == [7]
    assert [line["step"] for line in run.read_lines("metrics.jsonl")] == list(range(1, 21))


def test_the_launcher_itself_can_be_asked_to_stop(workshop: Any) -> None:
    config = settings(workshop, "stopped")
    with pytest.raises(Preempted):
        start(workshop, config, ActAtStep(9, lambda ranks: os.kill(os.getpid(), signal.SIGTERM)))
    newest = checkpoints.newest(workshop.run(config.run))
    assert newest is not None
    assert newest.step >= 9
    assert start(workshop, config)["step"] == 20


def test_at_the_budget_it_saves_and_is_evaluated_as_it_is(workshop: Any) -> None:
    config = settings(workshop, "poor", budget_usd=40.0, usd_per_hour=50.0)
    config = RunConfig.parse({**config.model_dump(), "train": {**config.train.model_dump(), "steps": 3000}})
    hours = [0.0]

    def let_an_hour_pass(_ranks: dict[int, int]) -> None:
        hours[0] += 1

    def clock() -> float:
        return time.monotonic() + 3600 * hours[0]

    first = start(workshop, config, ActAtStep(9, let_an_hour_pass), clock=clock)
    assert first["stopped"] == "budget"
    assert 9 <= first["step"] < 3000
    run = workshop.run(config.run)
    newest = checkpoints.newest(run)
    assert newest is not None
    assert newest.step == first["step"]
    assert 50 < spent(read_ledger(run)) < 60
    stops = [event for event in run.read_lines("events.jsonl") if event["event"] == "stop-asked"]
    assert {event["why"] for event in stops} == {"SIGTERM"}
    assert start(workshop, config, clock=clock) == {**first, "attempts": 0}, "there is no money left for another start"
