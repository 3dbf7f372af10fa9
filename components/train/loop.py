"""The training loop: from the newest whole checkpoint to the last step, or to one that all ranks agree to stop at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import nan

import torch
from PIL import Image
from torch import Tensor

from components.errors import DarkroomError, DataError, Diverged, Preempted
from components.processes.watchdog import Watchdog
from components.train.checkpointing import Saver
from components.train.config import TrainConfig, epochs_of_steps
from components.train.data.reader import MicroBatch, Reader
from components.train.metrics.monitor import Monitor
from components.train.metrics.throughput import Stopwatch
from components.train.metrics.validation import Validation
from components.train.processes.agreement import Agreement
from components.train.processes.collectives import any_rank, first_problem
from components.train.step.engine import Engine
from components.train.step.lr_schedule import learning_rate

DrawSamples = Callable[[dict[str, Tensor]], Image.Image]


@dataclass(frozen=True)
class Training:
    """Everything that the loop works with, ready to go on after optimizer step ``step``.

    Attributes:
        step_flops: Returns the FLOPs of a global batch, given one of its micro-batches; None if nobody needs them.
        validation: Measures the loss on held-out samples; None if there are none, or if it is switched off.
    """

    config: TrainConfig
    step: int
    engine: Engine
    reader: Reader
    saver: Saver
    agreement: Agreement
    watchdog: Watchdog
    monitor: Monitor
    draw_samples: DrawSamples
    step_flops: Callable[[MicroBatch], float] | None = None
    validation: Validation | None = None


def train(job: Training) -> None:
    """Run the remaining optimizer steps.

    Raises:
        Preempted: If a rank got a stop signal; the state of the last step is committed.
        Diverged: If too many gradients in a row were not finite.
        StorageError: If a checkpoint could not be written.
    """
    config, monitor = job.config, job.monitor
    epochs = epochs_of_steps(config.last_step, job.reader.samples, config.global_batch)
    length = {"steps": config.last_step, "epochs": round(epochs, 3), "samples": job.reader.samples}
    monitor.event("training", step=job.step, **length)
    skipped = 0
    watch = Stopwatch(time.monotonic)
    if any_rank(monitor.has_pending(job.step)):
        _measure(job, job.step, watch)
    for step, batch in enumerate(watch.waiting(job.reader.steps(job.step, config.last_step)), start=job.step + 1):
        rate = learning_rate(step - 1, config)
        result = job.engine.step(batch, rate)
        skipped = 0 if result.applied else _skip(job, step, skipped + 1)
        epoch = epochs_of_steps(step, job.reader.samples, config.global_batch)
        facts = {"epoch": epoch, "lr": rate, "grad_norm": result.gradient_norm, "samples": config.global_batch}
        facts |= {"flops": job.step_flops(batch[0]) if job.step_flops else 0.0, **asdict(watch.lap())}
        agreed = job.agreement.reach(step, result.loss_share, facts, at_once=config.pauses_after(step))
        for one in agreed:
            monitor.step(one.step, loss=one.loss, **one.facts)
        stop = any(one.stop for one in agreed)
        job.watchdog.beat(step)
        if stop or config.saves_after(step):
            _checkpoint(job, step, watch, last=stop or step == config.last_step)
        if stop and step < config.last_step:
            monitor.event("preempted", step=step)
            raise Preempted(f"asked to stop; the state after step {step} of {config.last_step} is saved")
        _measure(job, step, watch)
    monitor.event("finished", step=config.last_step)


def _checkpoint(job: Training, step: int, watch: Stopwatch, last: bool) -> None:
    with watch.stalled() as stall:
        job.monitor.flush()
        save = job.saver.save_now if last else job.saver.save
        save(step, job.engine.counters, job.engine.pieces)
    job.monitor.checkpoint(step, stall.seconds)
    if job.config.data.on_bad_shard == "skip":
        problem = first_problem("; ".join(job.reader.bad_shards.values()) or None)
        if problem is not None:
            job.monitor.event("bad-shards", step=step, problem=problem)


def _skip(job: Training, step: int, in_a_row: int) -> int:
    job.monitor.event("step-skipped", step=step, in_a_row=in_a_row)
    if in_a_row > job.config.limits.max_skipped_steps:
        raise Diverged(
            f"the gradient was not finite at step {step} and the {in_a_row - 1} before it; the last checkpoint is "
            "older. Lower train.optimizer.learning_rate, or use precision fp32"
        )
    return in_a_row


def _measure(job: Training, step: int, watch: Stopwatch) -> None:
    """Measure the moving average's loss on held-out samples and draw sample images, if they are due after a step."""
    if job.validation is not None and job.config.validates_after(step):
        loss, problem = nan, None
        with watch.apart() as spent:
            try:
                with job.engine.averaged():
                    loss = job.validation.loss(job.engine.losses, job.engine.device)
            except DataError as error:  # on every rank
                problem = str(error)
        job.monitor.validation(step, loss, job.validation.samples, spent.seconds, problem)
    if job.config.draws_after(step):
        _sample(job, step, watch)


def _sample(job: Training, step: int, watch: Stopwatch) -> None:
    problem = sheet = None
    with watch.apart() as spent:
        weights = job.engine.gather_ema()
        if weights is not None:
            try:
                sheet = job.draw_samples(weights)
            except (DarkroomError, torch.OutOfMemoryError) as error:  # a missing image is no reason to stop training
                problem = str(error)
    if sheet is not None:
        prompts = job.config.samples.prompts
        job.monitor.samples(step, sheet, prompts, (sheet.height, sheet.width // len(prompts)), spent.seconds)
    elif problem is not None:
        job.monitor.samples_failed(step, problem, spent.seconds)
