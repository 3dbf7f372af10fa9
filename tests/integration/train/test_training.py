"""Real training processes, stopped in every way, end with the bytes of a run that nobody stopped."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

from components.errors import ConfigError, Preempted
from components.model import checkpoints
from components.storage.base import Storage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(workshop: Any) -> str:
    ended = workshop.train("uninterrupted", "checkpoint.keep=9")
    assert ended.code == 0, ended.output
    assert [event["step"] for event in ended.events_named("checkpoint")] == [7, 14, 21, 28, 30]
    state: str = workshop.state("uninterrupted")
    return state


def copy_as_of(workshop: Any, step: int, name: str) -> Storage:
    """Return a run that has come as far as the checkpoint of a step of the uninterrupted one."""
    whole: Storage = workshop.run("uninterrupted")
    run: Storage = workshop.run(name)
    for entry in whole.list():
        run.write(entry.key, whole.read(entry.key))
    for later in checkpoints.steps(run):
        if later > step:
            run.delete_tree(checkpoints.folder(later))
    return run


def test_a_notice_to_one_rank_stops_all_after_one_step_and_nothing_is_lost(workshop: Any, uninterrupted: str) -> None:
    # 6.38 epochs of 47 samples are 30 steps of 10: the same training as one that was given 30 steps.
    epochs = ("steps=null", "epochs=6.38")
    ended = workshop.train("notice", *epochs, at_step=11, act=lambda gang: gang.signal(1, signal.SIGTERM))
    assert ended.code == Preempted.exit_code, ended.output
    assert {event["steps"] for event in ended.events_named("training")} == {30}
    saved = checkpoints.newest(workshop.run("notice"))
    assert saved is not None
    assert [event["step"] for event in ended.events_named("preempted")] == [saved.step]
    assert 11 <= saved.step <= 13, "the step in hand when the notice came, and no more than one after"

    ended = workshop.train("notice")
    assert ended.code == 0, ended.output
    assert [event["step"] for event in ended.events_named("resumed")] == [saved.step]
    assert workshop.state("notice") == uninterrupted
    assert len(workshop.losses("notice")) == 30
    assert workshop.losses("notice") == workshop.losses("uninterrupted")
    assert [event["event"] for event in workshop.train("notice", *epochs).events] == ["finished"]


@pytest.mark.proof  # `make test` has random kills in test_chaos.py
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_at_most_one_interval(workshop: Any, uninterrupted: str, rank: int) -> None:
    name = f"killed-{rank}"
    ended = workshop.train(name, at_step=17, act=lambda gang: gang.signal(rank, signal.SIGKILL))
    assert ended.code not in (0, Preempted.exit_code)
    saved = checkpoints.newest(workshop.run(name))
    assert saved is not None
    assert saved.step >= 14

    assert workshop.train(name).code == 0
    assert workshop.state(name) == uninterrupted
    assert workshop.losses(name) == workshop.losses("uninterrupted")


def test_a_torn_checkpoint_is_skipped_loudly(workshop: Any, uninterrupted: str) -> None:
    run = copy_as_of(workshop, 21, "torn")
    part = f"{checkpoints.folder(21)}/rank-00001.safetensors"
    run.write(part, run.read(part)[:-1])

    ended = workshop.train("torn")
    assert ended.code == 0, ended.output
    (resumed,) = ended.events_named("resumed")
    assert resumed["step"] == 14
    assert part in resumed["skipped"][0]
    assert workshop.state("torn") == uninterrupted


def test_a_checkpoint_that_cannot_be_written_is_told_and_training_goes_on(workshop: Any, uninterrupted: str) -> None:
    run = workshop.run("in-the-way")
    run.write(checkpoints.folder(7), b"a file where the folder should be")
    ended = workshop.train("in-the-way", "checkpoint.keep=9")
    assert ended.code == 0, ended.output
    (failed,) = ended.events_named("checkpoint-failed")
    assert failed["step"] == 7
    assert "same name" in failed["problem"]
    found = [one for one in checkpoints.candidates(run) if isinstance(one, checkpoints.Checkpoint)]
    assert [one.step for one in found] == [30, 28, 21, 14]
    assert workshop.state("in-the-way") == uninterrupted


def test_another_world_size_sees_the_same_samples(workshop: Any, uninterrupted: str) -> None:
    copy_as_of(workshop, 7, "elastic")
    ended = workshop.train("elastic", "ranks=3", "micro_batch=2", "zero_stage=2")
    assert ended.code == 0, ended.output
    assert [event["step"] for event in ended.events_named("resumed")] == [7]
    np.testing.assert_allclose(workshop.losses("elastic"), workshop.losses("uninterrupted"), rtol=1e-5)


def test_a_finished_training_is_not_started_again(workshop: Any, uninterrupted: str) -> None:
    ended = workshop.train("uninterrupted")
    assert ended.code == 0
    assert [event["event"] for event in ended.events] == ["finished"]


def test_other_data_settings_or_weights_begin_anew(workshop: Any, uninterrupted: str) -> None:
    ended = workshop.train("uninterrupted", "optimizer.learning_rate=0.002", "steps=8", "ranks=1")
    assert ended.code == 0, ended.output
    assert "another training" in ended.events_named("resumed")[0]["skipped"][0]
    assert len(workshop.losses("uninterrupted")) == 8


def test_wrong_settings_start_nothing(workshop: Any) -> None:
    ended = workshop.train("wrong", "learning_rte=1")
    assert ended.code == ConfigError.exit_code
    assert "did you mean optimizer.learning_rate?" in ended.output
    assert not ended.events_named("rank-started")
