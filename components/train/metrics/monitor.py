"""What a training reports: metrics of each step, events, validation, sample images, trackers; only rank 0 does.

``metrics.jsonl`` has a line per optimizer step, ``validation.jsonl`` one per measurement of the moving average's loss
on held-out samples, ``events.jsonl`` one per event, which is all that `components.accounting.ledger` needs to account
for every second, and ``samples/`` the sample images. A resumed training removes from the first two the steps that it
will repeat.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from math import isfinite
from types import TracebackType
from typing import Any, Self

from PIL import Image

from components.errors import NotFound, StorageError
from components.progress import Progress
from components.storage.base import Storage
from components.train.config import TrainConfig
from components.train.metrics.journal import Journal
from components.train.metrics.throughput import Lap, Throughput
from components.train.metrics.trackers import Trackers

METRICS, EVENTS, VALIDATION = "metrics.jsonl", "events.jsonl", "validation.jsonl"
SAMPLES = "samples/index.json"
# How long trackers get at the end to deliver what they still have; a node that is reclaimed does not wait.
_CLOSE_SECONDS = 30.0
_CLOSE_SECONDS_WHEN_STOPPED = 2.0


class Monitor:
    """Records a training in its run's folder, and reports its progress.

    Args:
        run: The run's folder.
        config: The training's settings.
        progress: Gets the events, too.
        is_main_rank: Whether this process is rank 0; on the others all calls do nothing.
        peak: FLOP/s that all ranks' devices could do together; None if unknown.
    """

    def __init__(
        self, run: Storage, config: TrainConfig, progress: Progress, is_main_rank: bool, peak: float | None = None
    ) -> None:
        self._run = run
        self._config = config
        self._progress = progress
        self._is_main_rank = is_main_rank
        self._peak = peak
        self._journal = Journal(run, lambda problem: progress.event("journal-failed", problem=problem))
        self._trackers: Trackers | None = None
        self._trained = 0.0  # seconds of the steps since the last checkpoint
        self._start_interval()

    def loading(self, ranks: int) -> None:
        """Record that all ranks have joined and begin to load."""
        if self._is_main_rank:
            self._journal.rewind(EVENTS, None)
            self.event("loading", ranks=ranks)

    def start(self, step: int, skipped: Sequence[str], training: str = "") -> None:
        """Remove the records of steps that training will repeat, and record from which step it goes on.

        Args:
            step: The optimizer step that training goes on from.
            skipped: Why newer checkpoints were skipped, one reason each.
            training: The identity of what is trained.
        """
        if not self._is_main_rank:
            return
        repeated = self._journal.rewind(METRICS, step)
        self._journal.rewind(VALIDATION, step)
        if step == 0:
            self._run.delete(SAMPLES)
        if step or skipped:
            self.event("resumed", step=step, skipped=list(skipped), repeated_steps=repeated)
        if self._config.metrics.trackers:
            description = {"run": self._run.url, "training": training, "step": step}
            description |= {"project": self._config.metrics.project, "config": self._config.model_dump(mode="json")}
            self._trackers = Trackers(self._config.metrics.trackers, description, self.event)

    def event(self, event: str, **fields: Any) -> None:
        """Record something that happened."""
        if self._is_main_rank:
            self._journal.add(EVENTS, {"time": time.time(), "event": event, **fields})
            self._journal.flush()
            self._progress.event(event, **fields)

    def step(
        self,
        step: int,
        *,
        loss: float,
        samples: float,
        seconds: float,
        data_wait: float = 0.0,
        stall: float = 0.0,
        flops: float = 0.0,
        **metrics: float,
    ) -> None:
        """Record a step; its metrics are written every ``metrics.log_every`` steps and at the end.

        Args:
            step: The optimizer step.
            loss: The mean loss of its global batch.
            samples: The size of its global batch.
            seconds: How long it took; see `components.train.metrics.throughput.Lap`.
            data_wait: How much of that this rank waited for its batch, in seconds.
            stall: How long training stood still for a checkpoint before it, in seconds.
            flops: Its floating-point operations; 0 if unknown.
            metrics: Further numbers: ``epoch``, ``lr``, ``grad_norm``.
        """
        if not self._is_main_rank:
            return
        lap, alone = Lap(seconds, data_wait, stall), Throughput(self._peak)
        for throughput in (alone, self._throughput):
            throughput.add(lap, samples, flops)
        self._trained += seconds
        self._losses.append(loss)
        speed = alone.speed()
        line: dict[str, float | None] = {"step": step, **metrics, "loss": loss, "samples": samples, "seconds": seconds}
        line |= {"data_wait": data_wait, "checkpoint_stall": stall}
        line |= {"samples_per_second": speed.samples_per_second, "mfu": speed.mfu}
        self._journal.add(METRICS, {name: _finite(value) for name, value in line.items()})
        if step % self._config.metrics.log_every == 0 or step == self._config.last_step:
            self._report(step, metrics)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        """Report the mean over the steps since the last report."""
        speed = self._throughput.speed()
        shares: dict[str, float | None] = {
            "samples_per_second": round(speed.samples_per_second, 2),
            "mfu": None if speed.mfu is None else round(speed.mfu, 4),
            "data_wait_share": round(speed.data_wait_share, 4),
            "checkpoint_stall_share": round(speed.checkpoint_stall_share, 4),
        }
        self._journal.flush()
        mean = sum(self._losses) / len(self._losses)
        self._progress.event("step", step=step, steps=self._config.last_step, loss=_finite(mean), **shares)
        values = {"train/loss": mean}
        values |= {f"train/{name}": value for name, value in metrics.items()}
        values |= {f"throughput/{name}": value for name, value in shares.items() if value is not None}
        self._track(step, values)
        self._start_interval()

    def checkpoint(self, step: int, stall: float) -> None:
        """Record that a checkpoint was copied out, for which training stood still for ``stall`` seconds."""
        trained, self._trained = self._trained, 0.0
        self.event("checkpoint", step=step, stall_seconds=round(stall, 4), trained_seconds=round(trained, 4))
        if self._trackers is not None:
            self._trackers.save()

    def save_failed(self, step: int, problem: str) -> None:
        """Record that a checkpoint could not be written."""
        self.event("checkpoint-failed", step=step, problem=problem)

    def flush(self) -> None:
        """Write what is still in memory, and wait until it is there."""
        if self._is_main_rank:
            self._journal.flush(wait=True)

    def validation(self, step: int, loss: float, samples: int, seconds: float, problem: str | None = None) -> None:
        """Record the moving average's loss on ``samples`` held-out samples, or why it could not be measured."""
        if not self._is_main_rank:
            return
        line = {"step": step, "weights": "ema", "loss": _finite(loss), "samples": samples, "seconds": round(seconds, 4)}
        if problem is not None:
            self.event("validation", **line, problem=problem)
            return
        self._journal.add(VALIDATION, line)
        self.event("validation", **line)
        self._track(step, {"validation/ema_loss": loss})

    def samples(
        self, step: int, sheet: Image.Image, prompts: Sequence[str], size: tuple[int, int], seconds: float
    ) -> None:
        """Store a row of sample images, one per prompt, drawn after this step; ``size`` is (H, W) of one image."""
        if not self._is_main_rank:
            return
        key = f"samples/step-{step:09d}.png"
        try:
            self._write_samples(key, step, sheet, {"prompts": list(prompts), "size": list(size)})
        except StorageError as error:
            self.samples_failed(step, str(error), seconds)
            return
        self.event("samples", step=step, seconds=round(seconds, 4))
        if self._trackers is not None:
            self._trackers.images(step, key, size)

    def samples_failed(self, step: int, problem: str, seconds: float) -> None:
        """Record that no images could be drawn."""
        self.event("samples", step=step, seconds=round(seconds, 4), problem=problem)

    def has_pending(self, step: int) -> bool:
        """Tell whether validation or sample images are due after a step and not recorded yet."""
        if not self._is_main_rank:
            return False
        validated = not self._config.validates_after(step) or any(
            line["step"] == step for line in self._journal.lines(VALIDATION)
        )
        return not validated or (self._config.draws_after(step) and step not in self._drawn({}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is still in memory and end the trackers, quickly if training did not reach its end."""
        self.flush()
        if self._trackers is not None:
            self._trackers.close(_CLOSE_SECONDS if kind is None else _CLOSE_SECONDS_WHEN_STOPPED)
            self.flush()

    def _write_samples(self, key: str, step: int, sheet: Image.Image, same: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        self._run.write(key, buffer.getvalue())
        self._run.write_json(SAMPLES, {**same, "steps": sorted({step, *self._drawn(same)})})

    def _drawn(self, same: dict[str, Any]) -> list[int]:
        """Return the steps whose images exist; none if they are of other prompts or sizes than ``same``."""
        try:
            index = self._run.read_object(SAMPLES, "steps", *same)
        except NotFound:
            return []
        return list(index["steps"]) if all(index[name] == value for name, value in same.items()) else []

    def _track(self, step: int, values: dict[str, float]) -> None:
        if self._trackers is not None:
            self._trackers.log(step, {name: value for name, value in values.items() if isfinite(value)})

    def _start_interval(self) -> None:
        self._throughput = Throughput(self._peak)
        self._losses: list[float] = []


def _finite(value: float | None) -> float | None:
    """Return a number, or None for NaN and infinity, which JSON does not have."""
    return value if value is not None and isfinite(value) else None
