"""What a training reports can be read back, survives a restart, and shows what slows training down."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.errors import StorageError
from components.progress import Progress
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.metrics.monitor import Monitor
from components.train.metrics.trackers import Trackers


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.parse({"steps": 100, "metrics": {"log_every": 2}, **settings})


def monitor(run: Storage, settings: TrainConfig, output: io.StringIO | None = None, **more: Any) -> Monitor:
    return Monitor(run, settings, Progress(output or io.StringIO()), is_main_rank=True, **more)


def take_steps(watcher: Monitor, first: int, last: int, **metrics: float) -> None:
    for step in range(first, last + 1):
        values = {"loss": 1.0 / step, "lr": 0.1, "grad_norm": 2.0, "epoch": step / 10, "samples": 8, "seconds": 0.5}
        watcher.step(step, **{**values, **metrics})


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "runs/first"))


def test_a_line_per_step_says_what_the_step_cost(run: Storage) -> None:
    watcher = monitor(run, config(), peak=1000.0)
    watcher.start(0, [])
    take_steps(watcher, 1, 4, data_wait=0.1, stall=0.25, flops=200.0)
    lines = list(run.read_lines("metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[3] == {
        "step": 4,
        "loss": 0.25,
        "lr": 0.1,
        "grad_norm": 2.0,
        "epoch": 0.4,
        "samples": 8,
        "seconds": 0.5,
        "data_wait": 0.1,
        "checkpoint_stall": 0.25,
        "samples_per_second": 16.0,
        "mfu": 0.4,
    }


def test_the_log_line_is_over_the_steps_since_the_last_one(run: Storage) -> None:
    output = io.StringIO()
    watcher = monitor(run, config(metrics={"log_every": 2}), output)
    watcher.start(0, [])
    take_steps(watcher, 1, 1, data_wait=0.5)
    take_steps(watcher, 2, 4, stall=0.125)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    shares = {"mfu": None, "data_wait_share": 0.5, "checkpoint_stall_share": round(0.125 / 1.125, 4)}
    assert lines[0] == {"event": "step", "step": 2, "steps": 100, "loss": 0.75, "samples_per_second": 16.0, **shares}
    assert (lines[1]["step"], lines[1]["data_wait_share"]) == (4, 0.0)


def strictly(text: str) -> Any:
    """Read JSON as every reader but Python's does: it has no NaN and no infinity."""

    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} in {text}")

    return json.loads(text, parse_constant=reject)


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_numbers_that_json_does_not_know_are_null(run: Storage, number: float) -> None:
    output = io.StringIO()
    told = monitor(run, config(), output)
    told.start(0, [])
    take_steps(told, 1, 2, loss=number, grad_norm=number)
    told.validation(2, number, 5, 0.1)
    (line, _), (validation,), (event,) = (
        [strictly(line) for line in run.read(key).decode().splitlines()]
        for key in ("metrics.jsonl", "validation.jsonl", "events.jsonl")
    )
    assert (line["loss"], line["grad_norm"], line["lr"]) == (None, None, 0.1)
    assert validation["loss"] is event["loss"] is None
    assert validation["weights"] == event["weights"] == "ema"
    said = [strictly(line) for line in output.getvalue().splitlines()]
    assert [(one["event"], one["loss"]) for one in said] == [("step", None), ("validation", None)]


def test_trackers_are_told_finite_numbers_only(run: Storage) -> None:
    class Listening(Trackers):
        """Trackers of which there are none; keeps what they would be told."""

        def _send(self, message: Mapping[str, Any]) -> None:
            heard.append(strictly(json.dumps(message)))

    heard: list[dict[str, Any]] = []
    told = monitor(run, config())
    told.start(0, [])
    told._trackers = Listening([], {}, told.event)
    take_steps(told, 1, 2, grad_norm=inf)
    take_steps(told, 3, 4, loss=nan)
    told.validation(4, nan, 5, 0.1)
    told.validation(4, 0.5, 5, 0.1)
    assert [(one["step"], "train/loss" in one["values"], "train/grad_norm" in one["values"]) for one in heard] == [
        (2, True, False), (4, False, True), (4, False, False), (4, False, False),
    ]  # fmt: skip
    assert heard[0]["values"]["train/loss"] == 0.75
    assert heard[3]["values"] == {"validation/ema_loss": 0.5}


def test_a_restart_takes_off_what_is_done_again(run: Storage) -> None:
    settings = config(validation={"every": 2})
    watcher = monitor(run, settings)
    watcher.start(0, [])
    take_steps(watcher, 1, 6)
    for step in (2, 4, 6):
        watcher.validation(step, 1.0, 5, 0.1)
    run.append("metrics.jsonl", b'{"step": 7, "lo')

    watcher = monitor(run, settings)
    watcher.start(3, ["checkpoints/step-000000006 is torn"])
    assert [line["step"] for line in run.read_lines("metrics.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in run.read_lines("validation.jsonl")] == [2]
    resumed = [event for event in run.read_lines("events.jsonl") if event["event"] == "resumed"]
    assert [(event["step"], event["repeated_steps"], len(event["skipped"])) for event in resumed] == [(3, 3, 1)]


def test_a_checkpoint_says_how_long_was_trained_for_it(run: Storage) -> None:
    watcher = monitor(run, config())
    watcher.start(0, [])
    take_steps(watcher, 1, 3)
    watcher.flush()
    assert len(list(run.read_lines("metrics.jsonl"))) == 3, "no checkpoint holds steps that nothing tells of"
    watcher.checkpoint(3, 0.25)
    take_steps(watcher, 4, 4)
    watcher.checkpoint(4, 0.5)
    checkpoints = [event for event in run.read_lines("events.jsonl") if event["event"] == "checkpoint"]
    assert [(one["step"], one["stall_seconds"], one["trained_seconds"]) for one in checkpoints] == [
        (3, 0.25, 1.5),
        (4, 0.5, 0.5),
    ]


def draw(watcher: Monitor, step: int, prompts: str = "ab") -> None:
    watcher.samples(step, Image.new("RGB", (16, 8)), list(prompts), (8, 8), 1.5)


def test_sample_images_are_listed_as_far_as_they_are_drawn(run: Storage) -> None:
    settings = config(samples={"every": 10})
    watcher = monitor(run, settings)
    watcher.start(0, [])
    draw(watcher, 10)
    draw(watcher, 20)
    draw(watcher, 20)
    assert run.read_json("samples/index.json") == {"prompts": ["a", "b"], "size": [8, 8], "steps": [10, 20]}
    assert run.exists("samples/step-000000010.png")

    other = monitor(run, settings)
    other.start(20, [])
    draw(other, 30, "cd")
    assert run.read_json("samples/index.json") == {"prompts": ["c", "d"], "size": [8, 8], "steps": [30]}

    monitor(run, settings).start(0, [])
    assert not run.exists("samples/index.json"), "another training begins"


def test_a_store_that_takes_no_images_does_not_end_training(run: Storage) -> None:
    class Full(LocalStorage):
        def write(self, key: str, data: bytes) -> None:
            if key.startswith("samples/"):
                raise StorageError("no space left")
            super().write(key, data)

    watcher = monitor(Full(Path(run.url)), config(samples={"every": 10, "prompts": ["a", "b"]}))
    watcher.start(0, [])
    draw(watcher, 10)
    (event,) = run.read_lines("events.jsonl")
    assert (event["event"], event["step"], event["seconds"], event["problem"]) == ("samples", 10, 1.5, "no space left")
    assert watcher.has_pending(10)


def test_what_is_due_after_which_step() -> None:
    settings = config(
        steps=10,
        checkpoint={"every": 4},
        validation={"every": 3},
        samples={"every": 5, "steps": [2], "prompts": ["a"]},
    )
    after = range(11)
    assert [step for step in after if settings.validates_after(step)] == [0, 3, 6, 9, 10]
    assert [step for step in after if settings.draws_after(step)] == [2, 5, 10]
    assert [step for step in after if settings.pauses_after(step)] == [0, 2, 3, 4, 5, 6, 8, 9, 10]
    assert not any(config(validation={"every": None}).validates_after(step) for step in (0, 100))


def test_what_a_stop_kept_from_being_done_is_owed(run: Storage) -> None:
    watcher = monitor(run, config(validation={"every": 5}, samples={"every": 10, "prompts": ["a", "b"]}))
    watcher.start(0, [])
    assert watcher.has_pending(0), "the loss before the first step"
    assert not watcher.has_pending(3)
    assert watcher.has_pending(10)
    watcher.validation(10, 1.0, 5, 0.1)
    assert watcher.has_pending(10)
    draw(watcher, 10)
    assert not watcher.has_pending(10)
    assert not Monitor(run, config(), Progress(io.StringIO()), is_main_rank=False).has_pending(0)


def test_other_ranks_say_nothing(run: Storage) -> None:
    output = io.StringIO()
    silent = Monitor(run, config(metrics={"trackers": ["tensorboard"]}), Progress(output), is_main_rank=False)
    silent.start(0, ["skipped"])
    take_steps(silent, 1, 4)
    silent.validation(4, 1.0, 5, 0.1)
    silent.checkpoint(4, 0.1)
    draw(silent, 4)
    with silent:
        silent.event("finished")
    assert output.getvalue() == ""
    assert list(run.list()) == []
