"""What the trainer promises beyond surviving: any world size, gradients that are not finite, memory that ends."""

from __future__ import annotations

import resource
import signal
from typing import Any

import numpy as np
import pytest

from components.dataset.versions import read_dataset
from components.errors import ConfigError, DataError, OutOfMemory
from components.model import checkpoints

pytestmark = pytest.mark.slow

EXACT = ("exact_across_world_sizes=true", "zero_stage=0", "steps=6", "optimizer.warmup_steps=1")


@pytest.mark.parametrize("worlds", [(1, 2), pytest.param((1, 2, 3, 5), marks=pytest.mark.proof)])
def test_weights_are_the_same_bytes_at_any_world_size_when_asked(workshop: Any, worlds: tuple[int, ...]) -> None:
    states = set()
    for world in worlds:
        ended = workshop.train(f"exact-{world}", *EXACT, f"ranks={world}", f"micro_batch={1 + world % 3}")
        assert ended.code == 0, ended.output
        states.add(workshop.state(f"exact-{world}"))
    assert len(states) == 1


@pytest.mark.proof
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_sample_that_is_not_finite_costs_its_step_only(workshop: Any, stage: int) -> None:
    """The dataset's one bad sample comes once per epoch: that step is skipped, with notices or without."""
    settings = (f"zero_stage={stage}", "checkpoint.every=100")
    straight, stopped = f"poison-{stage}", f"poison-{stage}-stopped"
    ended = workshop.train(straight, *settings, dataset="poisoned")
    assert ended.code == 0, ended.output
    skipped = [event["step"] for event in ended.events_named("step-skipped")]
    assert len(skipped) == 300 // 47, "30 steps of 10 samples see 47 samples six times, and a few of them once more"
    lines = workshop.run(straight).read_lines("metrics.jsonl")
    assert [line["step"] for line in lines if line["loss"] is None] == skipped

    workshop.train(
        stopped, *settings, dataset="poisoned", at_step=skipped[2], act=lambda gang: gang.signal(1, signal.SIGTERM)
    )
    assert workshop.train(stopped, *settings, dataset="poisoned").events_named("resumed")
    assert workshop.state(stopped) == workshop.state(straight)
    newest = checkpoints.newest(workshop.run(straight))
    assert newest is not None
    assert newest.counters["updates"] == 30 - len(skipped)
    assert all(np.isfinite(array).all() for array in newest.read_all("ema").values())


def test_gradients_that_stay_not_finite_end_the_training(workshop: Any) -> None:
    ended = workshop.train(
        "diverging", "optimizer.learning_rate=1", "optimizer.warmup_steps=0", "optimizer.weight_decay=100",
        "optimizer.schedule=constant",
        "limits.max_skipped_steps=3", "checkpoint.every=1", "ranks=1",
    )  # fmt: skip
    assert ended.code == ConfigError.exit_code, ended.output
    assert "Lower train.optimizer.learning_rate" in ended.output
    assert [event["in_a_row"] for event in ended.events_named("step-skipped")] == [1, 2, 3, 4]


def test_memory_that_does_not_suffice_halves_the_micro_batch(workshop: Any) -> None:
    name = "memory"
    settings = ("global_batch=16384", "ranks=1", "steps=2", "optimizer.warmup_steps=0", "samples.steps=[]")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, before[1]))
    try:
        ended = workshop.train(name, *settings, "micro_batch=16384")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert ended.code == OutOfMemory.exit_code, ended.output
    assert "16384 images per forward pass; the next start takes 8192" in ended.output
    assert workshop.run(name).read_json("micro_batch.json") == {"micro_batch": 8192}


@pytest.fixture(scope="module")
def bad_shard(workshop: Any) -> str:
    """Return the name of a shard with a flipped bit, in the dataset ``bad-shard``."""
    source, target = (workshop.workdir.child(f"datasets/{key}") for key in ("key", "bad-shard"))
    for entry in source.list():
        target.write(entry.key, source.read(entry.key))
    dataset = read_dataset(target)
    assert dataset is not None
    name = dataset.shards[1].name
    data = target.read(f"{name}.tar")
    target.write(f"{name}.tar", data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    return name


def test_a_bad_shard_ends_the_training(workshop: Any, bad_shard: str) -> None:
    ended = workshop.train("bad-shard", dataset="bad-shard")
    assert ended.code == DataError.exit_code, ended.output
    assert bad_shard in ended.output


@pytest.mark.proof
def test_a_bad_shard_is_skipped_if_the_settings_say_so(workshop: Any, bad_shard: str) -> None:
    for run in ("skip-a", "skip-b"):
        ended = workshop.train(run, "data.on_bad_shard=skip", dataset="bad-shard")
        assert ended.code == 0, ended.output
        assert bad_shard in ended.events_named("bad-shards")[-1]["problem"]
    assert workshop.state("skip-a") == workshop.state("skip-b")
    assert len(workshop.losses("skip-a")) == 30
