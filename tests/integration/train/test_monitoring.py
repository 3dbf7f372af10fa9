"""Watching a training changes nothing about it, survives what it survives, and accounts for every second of it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

from components.accounting.ledger import STATES
from components.dataset.versions import Shard, make_dataset, read_dataset, write_dataset
from components.errors import Preempted
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.launch.context import LaunchContext
from pipeline.launch.local_launcher import launch
from tests.integration.launch.act_at_step import ActAtStep

pytestmark = pytest.mark.slow

BARE = ("steps=12", "checkpoint.every=4", "validation.every=null")
WATCHED = (
    *BARE[:2],
    "validation.every=3",
    "validation.samples=10",
    "samples.every=5",
    "samples.prompts=[number 1, number 2]",
    "samples.denoising_steps=2",
    "metrics.trackers=[tensorboard]",
)


def hold_out(workdir: Storage, target: str, *more: Shard) -> None:
    """Copy the dataset, each fourth of its samples held out."""
    source, copy = workdir.child("datasets/key"), workdir.child(f"datasets/{target}")
    for entry in source.list():
        copy.write(entry.key, source.read(entry.key))
    dataset = read_dataset(source)
    assert dataset is not None
    shards = [replace(shard, held_out=tuple(range(0, shard.samples, 4))) for shard in dataset.shards]
    write_dataset(copy, make_dataset("key", {}, [*shards, *more], rejected=0))


@pytest.fixture(scope="module")
def held(workshop: Any) -> str:
    hold_out(workshop.workdir, "held")
    return "held"


@pytest.fixture(scope="module")
def watched(workshop: Any, held: str) -> Storage:
    ended = workshop.train("watched", *WATCHED, dataset=held)
    assert ended.code == 0, ended.output
    run: Storage = workshop.run("watched")
    return run


def validation(run: Storage) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in run.read_lines("validation.jsonl")]


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(1, "fp32"), *(pytest.param(*case, marks=pytest.mark.proof) for case in [(0, "fp32"), (3, "bf16")])],
)
def test_watching_does_not_change_a_bit(workshop: Any, watched: Storage, held: str, stage: int, precision: str) -> None:
    how = (f"zero_stage={stage}", f"precision={precision}")
    bare = f"bare-{stage}"
    assert workshop.train(bare, *BARE, *how, dataset=held).code == 0
    monitored = "watched"
    if stage != 1:
        monitored = f"watched-{stage}"
        ended = workshop.train(monitored, *WATCHED, *how, dataset=held)
        assert ended.code == 0, ended.output
    assert [step for step, _ in validation(workshop.run(monitored))] == [0, 3, 6, 9, 12]
    assert workshop.run(monitored).read_json("samples/index.json")["steps"] == [5, 10]
    assert not workshop.run(bare).exists("validation.jsonl")
    assert workshop.state(monitored) == workshop.state(bare)
    assert workshop.losses(monitored) == workshop.losses(bare)


@pytest.mark.proof
def test_a_broken_training_is_watched_like_a_whole_one(workshop: Any, watched: Storage, held: str) -> None:
    ended = workshop.train("broken", *WATCHED, dataset=held, at_step=5, act=lambda gang: gang.signal(1, signal.SIGTERM))
    assert ended.code == Preempted.exit_code, ended.output
    ended = workshop.train(
        "broken", *WATCHED, dataset=held, at_step=10, act=lambda gang: gang.signal(0, signal.SIGKILL)
    )
    assert ended.code not in (0, Preempted.exit_code)
    ended = workshop.train("broken", *WATCHED, dataset=held)
    assert ended.code == 0, ended.output

    broken = workshop.run("broken")
    assert validation(broken) == validation(watched)
    assert broken.read_json("samples/index.json") == watched.read_json("samples/index.json")
    for step in (5, 10):
        key = f"samples/step-{step:09d}.png"
        assert broken.read(key) == watched.read(key)
    assert tensorboard(broken) == tensorboard(watched)


def tensorboard(run: Storage) -> dict[str, list[tuple[int, float]]]:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reading.EventAccumulator(str(run.local_path("tracking/tensorboard")))
    accumulator.Reload()
    same = [tag for tag in accumulator.Tags()["scalars"] if not tag.startswith("throughput/")]
    assert {"train/loss", "train/lr", "validation/ema_loss"} <= set(same)
    return {tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in same}


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.proof)])
def test_the_number_of_ranks_does_not_enter_validation(workshop: Any, watched: Storage, held: str, ranks: int) -> None:
    name = f"ranks-{ranks}"
    ended = workshop.train(name, *BARE[:2], *WATCHED[2:4], f"ranks={ranks}", dataset=held)
    assert ended.code == 0, ended.output
    here, there = validation(workshop.run(name)), validation(watched)
    assert here[0] == there[0], "equal weights give equal bits"
    assert [step for step, _ in here] == [step for step, _ in there]
    assert [loss for _, loss in here] == pytest.approx([loss for _, loss in there], rel=1e-5)


def test_the_log_and_the_metrics_say_what_holds_training_up(workshop: Any, watched: Storage) -> None:
    lines = list(watched.read_lines("metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert 0 <= line["data_wait"] <= line["seconds"]
        assert line["samples_per_second"] == pytest.approx(10 / line["seconds"])
        assert line["mfu"] is None, "nobody knows the peak of a CPU"
    assert [line["step"] for line in lines if line["checkpoint_stall"] > 0] == [5, 9]


def test_what_cannot_be_measured_or_drawn_does_not_end_training(workshop: Any) -> None:
    # More samples than all others have, so that its bucket is the one to draw in.
    lost = Shard("shards/12x12/00000000000000ff", (12, 12), 100, 9, "00" * 32, tuple(range(100)))
    hold_out(workshop.workdir, "gone", lost)
    watching = ("validation.every=2", "samples.every=2", "samples.prompts=[number 1]")
    ended = workshop.train("gone", "steps=4", "checkpoint.every=4", "ranks=1", *watching, dataset="gone")
    assert ended.code == 0, ended.output
    problems = {name: [event["problem"] for event in ended.events_named(name)] for name in ("validation", "samples")}
    assert len(problems["validation"]) == 3
    assert "shards/12x12/00000000000000ff" in problems["validation"][0]
    assert len(problems["samples"]) == 2
    assert "multiples of 8" in problems["samples"][0]


def test_the_ledger_accounts_for_every_second(workshop: Any, held: str) -> None:
    train = {**workshop.settings, "ranks": 1, "steps": 16, "checkpoint": {"every": 4}, "validation": {"every": 4}}
    train |= {"samples": {"every": 8, "prompts": ["number 1"], "denoising_steps": 2}}
    drill = {"spot_drill": {"step": 6, "rank": 0}}
    config = RunConfig.parse(
        {"name": "account", "seed": 5, "ingest": {"source": "unused"}, "train": train, "launch": drill}
    )
    progress = ActAtStep(12, lambda ranks: os.kill(ranks[0], signal.SIGKILL))
    began = time.monotonic()
    data = ("workdir:models/base/tiny", held, workshop.digest(held))
    result = launch(LaunchContext(config, workshop.workdir, *data, progress))
    whole = time.monotonic() - began
    assert result["attempts"] == 3

    run = workshop.run(config.run)
    ledger = list(run.read_lines("ledger.jsonl"))
    assert [line["state"] for line in ledger] == 3 * list(STATES)
    assert min(line["seconds"] for line in ledger) >= 0
    assert sum(line["seconds"] for line in ledger) == pytest.approx(whole, abs=0.5)
    spent = {attempt: {one["state"]: one["seconds"] for one in lines} for attempt, lines in
             groupby(ledger, key=lambda line: line["attempt"])}  # fmt: skip
    assert all(part["loading"] > 0 and part["useful"] > 0 and part["saving"] > 0 for part in spent.values())
    assert [part["lost"] > 0 for part in spent.values()] == [False, True, False]
    assert sum(part["validating"] for part in spent.values()) > 0
    assert sum(part["sampling"] for part in spent.values()) > 0
    # What is left over is the end of each process: nothing in the loop goes unaccounted for.
    assert all(part["idle"] < 0.2 * sum(part.values()) for part in spent.values()), spent

    steps = {line["step"]: line["seconds"] for line in run.read_lines("metrics.jsonl")}
    useful = sum(part["useful"] for part in spent.values())
    assert list(steps) == list(range(1, 17))
    assert useful == pytest.approx(sum(steps.values()), rel=0.01, abs=0.01)
    events = list(run.read_lines("events.jsonl"))
    for name in ("validation", "samples"):
        state = {"validation": "validating", "samples": "sampling"}[name]
        seconds = sum(event["seconds"] for event in events if event["event"] == name)
        assert sum(part[state] for part in spent.values()) == pytest.approx(seconds, rel=0.01, abs=0.01)
