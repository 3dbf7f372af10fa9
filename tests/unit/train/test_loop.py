"""The training loop with all its real parts, around a model of a few numbers: what it tells, where it stops."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, pack
from components.dataset.versions import Dataset, Shard, make_dataset
from components.digests import sha256
from components.errors import DarkroomError, Diverged, Preempted, StorageError
from components.model import checkpoints
from components.processes.stopping import Stopping
from components.processes.watchdog import Watchdog
from components.progress import Progress
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from components.train import checkpointing as saver_module
from components.train.checkpointing import Saver
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, MicroBatch, Reader
from components.train.loop import Training, train
from components.train.metrics.monitor import Monitor
from components.train.metrics.validation import Validation
from components.train.processes.agreement import Agreement
from components.train.step.engine import Engine, load_weights
from components.train.step.lr_schedule import learning_rate

SETTINGS = {
    "steps": 10, "global_batch": 4, "micro_batch": 4, "zero_stage": 0, "checkpoint": {"every": 4},
    "metrics": {"log_every": 100}, "validation": {"every": None}, "data": {"window": 1},
    "optimizer": {"learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 2},
}  # fmt: skip
DRAWING = Drawing(seed=3, timesteps=1000, scaling_factor=1.0, caption_dropout=0.0)
LATE = 1e9  # seconds of a step below which it is read late: always


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    meeting = tmp_path_factory.mktemp("meeting") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sample(number: int) -> Sample:
    rng = np.random.default_rng(number)
    key = sha256(b"%d" % number)
    moments = rng.standard_normal((8, 2, 2)).astype(np.float16)
    return Sample(key, moments, np.zeros((2, 3), dtype=np.float16), {"sha256": key, "caption_digest": key})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Storage]:
    storage = open_storage(str(tmp_path_factory.mktemp("data")))
    tar, index = pack([sample(number) for number in range(11)])
    storage.write("shards/2x2/0.tar", tar)
    storage.write("shards/2x2/0.idx", index)
    write_empty_prompt(storage, EmptyPrompt(np.zeros((2, 3), dtype=np.float16)))
    shard = Shard("shards/2x2/0", (2, 2), 11, len(tar), sha256(tar), held_out=(0, 1))
    return make_dataset("key", {}, [shard], rejected=0), storage


def loss_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    predicted: Tensor = model(batch.latents.flatten(1))
    return (predicted - batch.noise.flatten(1)).square().mean(1)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(16, 16)


@dataclass
class Attempt:
    """One attempt of a run.

    Attributes:
        at: What happens in the forward pass of a step; the losses are multiplied with what it returns.
    """

    data: tuple[Dataset, Storage]
    run: Storage
    late_below: float = 0.0
    at: dict[int, Callable[[], float]] = field(default_factory=dict)
    draw: Callable[[dict[str, Tensor]], Any] = lambda weights: Image.new("RGB", (2, 2))
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0, Progress(io.StringIO())))
    stopping: Stopping = field(default_factory=lambda: Stopping(leave=lambda code: None))

    def go(self, **settings: Any) -> None:
        """Train from the newest checkpoint on."""
        config = TrainConfig.parse({**SETTINGS, **settings})
        model, found = make_model(), checkpoints.newest(self.run)
        self._step = found.step if found is not None else 0
        if found is not None:
            load_weights(model, found.read_all("master"))
        engine = Engine(model, self._loss, config)
        if found is not None:
            engine.restore(found)
        monitor = Monitor(self.run, config, Progress(io.StringIO()), is_main_rank=True)
        monitor.start(self._step, [])
        saver = Saver(self.run, 0, 1, "training", engine.shapes, config, monitor.save_failed)
        reader = Reader(*self.data, DRAWING, config, 0, 1)
        validation = Validation(*self.data, DRAWING, config, 0, 1) if config.validation.every else None
        agreement = Agreement(self.stopping, engine.device, self.late_below)
        with monitor, saver:
            train(Training(config, self._step, engine, reader, saver, agreement, self.watchdog, monitor, self.draw,
                           validation=validation))  # fmt: skip

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.run.read_lines("events.jsonl") if event["event"] == name]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return list(self.run.read_lines("metrics.jsonl"))

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(line["step"], line["loss"]) for line in self.metrics]

    @property
    def newest(self) -> checkpoints.Checkpoint:
        found = checkpoints.newest(self.run)
        assert found is not None
        return found

    def _loss(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        if torch.is_grad_enabled():
            self._step += 1
            if self._step in self.at:
                return loss_of(model, batch) * self.at[self._step]()
        return loss_of(model, batch)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.fixture(scope="module")
def uninterrupted(data: tuple[Dataset, Storage], tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    attempt = Attempt(data, open_storage(str(tmp_path_factory.mktemp("straight"))))
    attempt.go()
    return attempt


def test_each_step_is_told_with_its_own_numbers(uninterrupted: Attempt, data: tuple[Dataset, Storage]) -> None:
    config = TrainConfig.parse(SETTINGS)
    engine, reader = Engine(make_model(), loss_of, config), Reader(*data, DRAWING, config, 0, 1)
    assert [line["step"] for line in uninterrupted.metrics] == list(range(1, 11))
    for step, line in enumerate(uninterrupted.metrics, start=1):
        rate = learning_rate(step - 1, config)
        share, norm, _ = engine.step(reader.read(step - 1), rate)
        told = (line["loss"], line["grad_norm"], line["lr"], line["samples"], line["epoch"])
        assert told == pytest.approx((float(share), norm, rate, 4, step * 4 / 9))
    for name, array in uninterrupted.newest.read_all("master").items():
        np.testing.assert_array_equal(
            array.ravel(), next(p.arrays["master"] for p in engine.pieces() if p.name == name)
        )


def test_checkpoints_are_saved_when_due_and_at_the_end(uninterrupted: Attempt) -> None:
    assert [event["step"] for event in uninterrupted.events("checkpoint")] == [4, 8, 10]
    assert [event["step"] for event in uninterrupted.events("finished")] == [10]
    assert uninterrupted.newest.step == 10


@pytest.mark.parametrize(("late_below", "last"), [(0.0, 6), (LATE, 7)], ids=["at once", "late"])
def test_what_was_done_before_a_stop_is_saved_and_told(
    data: tuple[Dataset, Storage], run: Storage, uninterrupted: Attempt, late_below: float, last: int
) -> None:
    """A stop that is asked for in step 6 and read late comes after step 7; no step and none of its numbers is lost."""
    attempt = Attempt(data, run, late_below)
    attempt.at[6] = lambda: attempt.stopping.ask("test") or 1.0  # type: ignore[func-returns-value]
    with pytest.raises(Preempted, match=f"the state after step {last} of 10 is saved"):
        attempt.go()
    assert attempt.newest.step == last
    assert [event["step"] for event in attempt.events("preempted")] == [last]
    assert attempt.losses == uninterrupted.losses[:last]
    again = Attempt(data, run, late_below)
    again.go()
    assert again.newest.digest == uninterrupted.newest.digest
    for line, expected in zip(again.metrics, uninterrupted.metrics, strict=True):
        assert [line[name] for name in ("step", "loss", "lr", "grad_norm", "epoch")] == [
            expected[name] for name in ("step", "loss", "lr", "grad_norm", "epoch")
        ]


class Watched(LocalStorage):
    """A folder that fails to take the first commit, and counts the steps that are told of by each."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.steps: list[int] = []

    def write(self, key: str, data: bytes) -> None:
        if key.endswith("/COMMIT"):
            self.steps.append(len(list(self.read_lines("metrics.jsonl"))))
            if len(self.steps) == 1:
                raise StorageError("the store is away")
        super().write(key, data)


def test_what_a_stop_saves_is_told_before_and_tried_again(
    data: tuple[Dataset, Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "_RETRY_SECONDS", (0.0,))
    run = Watched(tmp_path)
    attempt = Attempt(data, run)
    attempt.at[3] = lambda: attempt.stopping.ask("test") or 1.0  # type: ignore[func-returns-value]
    with pytest.raises(Preempted):
        attempt.go()
    assert [event["step"] for event in attempt.events("checkpoint-failed")] == [3]
    assert attempt.newest.step == 3
    assert run.steps == [3, 3], "no checkpoint holds steps that nothing tells of"


def test_a_stop_during_the_last_step_comes_too_late(data: tuple[Dataset, Storage], run: Storage) -> None:
    attempt = Attempt(data, run)
    attempt.at[10] = lambda: attempt.stopping.ask("test") or 1.0  # type: ignore[func-returns-value]
    attempt.go()
    assert (attempt.events("preempted"), len(attempt.events("finished"))) == ([], 1)


def test_steps_without_a_finite_gradient_count_only_in_a_row(data: tuple[Dataset, Storage], run: Storage) -> None:
    attempt = Attempt(data, run, at={step: lambda: nan for step in (2, 4, 5, 8)})
    attempt.go(limits={"max_skipped_steps": 2})
    skipped = [(event["step"], event["in_a_row"]) for event in attempt.events("step-skipped")]
    assert skipped == [(2, 1), (4, 1), (5, 2), (8, 1)]
    assert attempt.newest.counters["updates"] == 6
    assert [line["step"] for line in attempt.metrics if line["loss"] is None] == [2, 4, 5, 8]
    assert all(np.isfinite(array).all() for array in attempt.newest.read_all("master").values())


def test_too_many_of_them_in_a_row_end_the_training(data: tuple[Dataset, Storage], run: Storage) -> None:
    attempt = Attempt(data, run, at={step: lambda: nan for step in (5, 6, 7)})
    with pytest.raises(Diverged, match="at step 7 and the 2 before it"):
        attempt.go(limits={"max_skipped_steps": 2})
    assert attempt.newest.step == 4


def test_the_watchdog_hears_of_each_step(data: tuple[Dataset, Storage], run: Storage) -> None:
    now = [0.0]
    attempt = Attempt(data, run, watchdog=Watchdog(0, Progress(io.StringIO()), start_seconds=0.1, clock=lambda: now[0]))
    attempt.go()
    now[0] += 0.5
    assert attempt.watchdog.overdue() is None, "the limit until the first step does not hold any more"


def test_images_that_cannot_be_drawn_are_told_of_and_training_goes_on(
    data: tuple[Dataset, Storage], run: Storage
) -> None:
    def draw(weights: dict[str, Tensor]) -> Any:
        assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {"weight": (16, 16), "bias": (16,)}
        raise DarkroomError("no memory for it")

    attempt = Attempt(data, run, draw=draw)
    attempt.go(samples={"steps": [2], "prompts": ["a"]})
    assert [(event["step"], event["problem"]) for event in attempt.events("samples")] == [(2, "no memory for it")]
    assert attempt.newest.step == 10


def test_measuring_and_drawing_change_nothing_and_are_made_up_for_after_a_stop(
    data: tuple[Dataset, Storage], run: Storage, uninterrupted: Attempt
) -> None:
    looks = {"validation": {"every": 5}, "samples": {"steps": [5], "prompts": ["a"]}}
    attempt = Attempt(data, run)
    attempt.at[5] = lambda: attempt.stopping.ask("test") or 1.0  # type: ignore[func-returns-value]
    with pytest.raises(Preempted):
        attempt.go(**looks)
    assert [event["step"] for event in attempt.events("validation")] == [0], "whoever is asked to stop has no time"
    attempt = Attempt(data, run)
    attempt.go(**looks)
    assert [event["step"] for event in attempt.events("validation")] == [0, 5, 10]
    assert [event["step"] for event in attempt.events("samples")] == [5]
    assert attempt.newest.digest == uninterrupted.newest.digest
    published = make_model()
    load_weights(published, attempt.newest.read_all("ema"))
    validation = Validation(*data, DRAWING, TrainConfig.parse({**SETTINGS, **looks}), 0, 1)
    with torch.no_grad():
        loss = validation.loss(lambda batch: loss_of(published, batch), torch.device("cpu"))
    assert attempt.events("validation")[-1]["loss"] == loss, "it is the loss of what is published"
