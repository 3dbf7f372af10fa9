"""The errors with which a launch ends: their class, and the settings and values that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import ConfigError, DarkroomError, DataError
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.launch.config import LaunchConfig
from pipeline.launch.diagnosis import failures
from pipeline.launch.diagnosis.failures import restart_limit_error, step_when_stopped, trainer_error
from pipeline.launch.policy import LaunchState
from tests.cluster.operators import commit_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        ("budget", ("12.5", "launch.budget_usd", "train.checkpoint.every")),
        ("deadline", ("3.0", "launch.deadline_hours", "train.checkpoint.every")),
    ],
)
def test_the_newest_checkpoint_is_evaluated_and_without_one_the_limit_is_named(
    run: Storage, reason: str, names: tuple[str, ...]
) -> None:
    launch = LaunchConfig.parse({"budget_usd": 12.5, "deadline_hours": 3})
    with pytest.raises(DarkroomError) as raised:
        step_when_stopped(run, reason, launch)
    assert all(name in str(raised.value) for name in names)
    commit_checkpoint(run, 1)
    assert step_when_stopped(run, reason, launch) == 1


RESTARTS = (
    "exit code 9", "2 preemptions", "3 crashes", "launch.restarts.max_preemptions", "launch.restarts.max_crashes", "7",
)  # fmt: skip
PROGRESS = ("exit code 9", "step 40", "launch.restarts.max_without_progress", "train.checkpoint.every")


@pytest.mark.parametrize(("without_progress", "names"), [(2, RESTARTS), (3, PROGRESS)])
def test_the_error_names_the_limit_and_ends_with_the_log(without_progress: int, names: tuple[str, ...]) -> None:
    state = LaunchState(
        0.0, "spot", 1, 0.0, checkpoint_step=40, preemptions=2, crashes=3, without_progress=without_progress
    )
    launch = LaunchConfig.parse({"restarts": {"max_without_progress": 2, "max_crashes": 7}})
    message = str(restart_limit_error(state, 9, launch, "the disk is full\nreally"))
    assert message.endswith("\nthe disk is full\nreally")
    assert all(name in message for name in names)


@pytest.mark.parametrize(("exit_code", "error"), [(78, ConfigError), (65, DataError), (1, DarkroomError)])
def test_the_trainers_exit_code_decides_the_class_of_the_error(exit_code: int, error: type[DarkroomError]) -> None:
    assert type(trainer_error(exit_code, "message")) is error


DEEPSPEED = "[2026-11-21 19:16:31,247] [WARNING] [real_accelerator.py:213:get_accelerator] Setting accelerator to CPU."
NOISE = [
    DEEPSPEED,
    "[2026-11-21 19:16:31,247] [INFO] [logging.py:107:log_dist] [Rank -1] DeepSpeed info",
    "[transformers] `CLIPImageProcessor` requires torchvision (not installed); falling back",
    "/lib/torch/x.py:12: FutureWarning: this will go away",
    "  warnings.warn(",
    "[rank0]:[W1121 19:16:31.247 ProcessGroupGloo.cpp:514] Warning: unable to resolve",
    "",
]


def test_libraries_that_only_warn_are_left_out() -> None:
    assert all(failures.is_noise(line) for line in NOISE)
    log = "\n".join([*NOISE, "Traceback (most recent call last):", "  here", "ValueError: no", *NOISE])
    assert failures.reason(log) == "Traceback (most recent call last):\n  here\nValueError: no"
    assert failures.reason("\n".join(NOISE)) == "(the log is empty)"


def test_what_all_ranks_say_is_said_once() -> None:
    reasons = [f"{DEEPSPEED}\nrank {rank}: shard is corrupt\ndelete it\n" for rank in (1, 0)]
    log = f"some library\n{''.join(reasons)}"
    assert str(failures.trainer_error(65, log)) == "shard is corrupt\ndelete it"
    assert str(failures.trainer_error(78, f"{DEEPSPEED}\nerror: steps: 0 is not allowed")) == "steps: 0 is not allowed"
