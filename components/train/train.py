"""The training loop: from the newest whole checkpoint to the last step, or to one that all ranks agree to stop at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from components.errors import Preempted
from components.train.config import TrainConfig
from components.train.engine import Engine
from components.train.monitor import Monitor
from components.train.reader import Reader
from components.train.saver import Saver
from components.train.schedule import learning_rate
from components.train.stopping import Stopping

DrawSamples = Callable[[dict[str, Tensor]], Image.Image]


@dataclass(frozen=True)
class Training:
    """Everything that the loop works with, ready to go on after optimizer step ``step``."""

    config: TrainConfig
    step: int
    engine: Engine
    reader: Reader
    saver: Saver
    stopping: Stopping
    monitor: Monitor
    draw_samples: DrawSamples


def train(job: Training) -> None:
    """Run the remaining optimizer steps.

    Raises:
        Preempted: Where a rank was asked to stop; the state of the last step is committed.
        StorageError: Where a checkpoint could not be written.
    """
    config, monitor = job.config, job.monitor
    monitor.event("training", step=job.step, steps=config.steps, samples=job.reader.samples)
    began = time.monotonic()
    for step, batch in enumerate(job.reader.steps(job.step, config.steps), start=job.step + 1):
        rate = learning_rate(step - 1, config)
        share, norm = job.engine.step(batch, rate)
        loss, stop = job.stopping.agree(share, job.engine.device)
        now = time.monotonic()
        told = {"loss": loss, "lr": rate, "grad_norm": norm, "samples": config.global_batch, "seconds": now - began}
        monitor.step(step, epoch=step * config.global_batch / job.reader.samples, **told)
        if step in config.sample_steps:
            _sample(job, step)
        if stop or step == config.steps or step % config.checkpoint_every == 0:
            _checkpoint(job, step, last=stop or step == config.steps)
        if stop and step < config.steps:
            monitor.event("preempted", step=step)
            raise Preempted(f"asked to stop; the state after step {step} of {config.steps} is saved")
        began = time.monotonic()
    monitor.event("finished", step=config.steps)


def _checkpoint(job: Training, step: int, last: bool) -> None:
    started = time.monotonic()
    stalled = job.saver.save(step, job.engine.pieces)
    if last:
        job.monitor.flush()
        job.saver.wait()
        stalled = time.monotonic() - started
    job.monitor.event("checkpoint", step=step, stall_seconds=round(stalled, 4))


def _sample(job: Training, step: int) -> None:
    weights = job.engine.gather_ema()
    if weights is not None:
        sheet = job.draw_samples(weights)
        columns = len(job.config.sample_prompts)
        job.monitor.samples(step, sheet, (sheet.height, sheet.width // columns))
