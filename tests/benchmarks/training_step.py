"""Samples per second of the training loop beside a bare forward + backward + AdamW loop of the same UNet.

    python tests/benchmarks/training_step.py [--size small|demo] [--zero-stage 0] [--steps 60]

Both run in one process on one core, a block of each in turn, so that a busy machine slows both alike. The training
loop also reads shards, draws noise, clips, averages weights, agrees with other ranks and writes metrics. Seconds of the
clock count waiting, too; seconds of the processor are what all threads of the loop took, and hardly depend on what
else the machine does.

Sizes: ``small`` has 4.2 M parameters and 16 latents of 4x16x16 per step, ``demo`` is the demo's UNet with 0.7 M and 64
of 4x4x4. Per parameter, a step of ``small`` computes twice as much as one of ``demo``, and that of Stable Diffusion 2
at 512² with 16 images per GPU ten times as much: what training adds per parameter weighs less the larger that is.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, pack
from components.dataset.versions import Shard, make_dataset, write_dataset
from components.digests import sha256
from components.model.architecture import Architecture, UnetArchitecture
from components.processes.stopping import Stopping
from components.processes.watchdog import Watchdog
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.checkpointing import Saver
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, MicroBatch, Reader
from components.train.loop import Training, train
from components.train.metrics.monitor import Monitor
from components.train.processes.agreement import Agreement
from components.train.step.engine import Engine, init_distributed
from components.train.step.loss import denoising_loss, make_loss

TEXT = (8, 64)


class Size(NamedTuple):
    """What is trained: the UNet's channels, the latents' side, latents per step, steps per block."""

    channels: tuple[int, int]
    side: int
    batch: int
    block: int

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of a latent."""
        return 4, self.side, self.side


SIZES = {"demo": Size((32, 48), 4, 64, 10), "small": Size((64, 128), 16, 16, 3)}


class Times(NamedTuple):
    """Seconds by the clock and of the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Times:
        """Read both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, other: Times) -> Times:
        """Return what has passed."""
        return Times(self.wall - other.wall, self.cpu - other.cpu)


class PairedMonitor(Monitor):
    """Times the steps between its calls, and after every block of them a block of something else."""

    def __init__(self, *arguments: Any, other: Callable[[], None], block: int, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._other = other
        self._block = block
        self._began = Times.now()
        self.blocks: list[tuple[Times, Times]] = []

    def step(self, step: int, **metrics: float) -> None:
        super().step(step, **metrics)
        if step % self._block == 0:
            middle = Times.now()
            for _ in range(self._block):
                self._other()
            self.blocks.append((middle.since(self._began), Times.now().since(middle)))
            self._began = Times.now()


def bare_loop(model: nn.Module, scheduler: Any, size: Size) -> Callable[[], None]:
    """Return one step of the least that training can be."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    given = MicroBatch(
        latents=torch.randn(size.batch, *size.latent),
        noise=torch.randn(size.batch, *size.latent),
        timesteps=torch.randint(0, 1000, (size.batch,)),
        text=torch.randn(size.batch, *TEXT),
        weights=torch.ones(size.batch),
    )

    def step() -> None:
        denoising_loss(model, scheduler, given).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_unet(size: Size) -> tuple[nn.Module, Any]:
    """Return a UNet and its noise schedule."""
    from diffusers import DDPMScheduler

    from components.autoencoder.scratch import build_scratch

    architecture = Architecture(unet=UnetArchitecture(channels=size.channels))
    pipeline = build_scratch(architecture, ["a handwritten digit three"], seed=0)
    return pipeline.unet.train(), DDPMScheduler.from_config(pipeline.scheduler.config)


def write_samples(storage: Storage, count: int, size: Size) -> None:
    """Write a dataset of random latents."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            key := sha256(b"%d" % number),
            rng.standard_normal((8, size.side, size.side)).astype(np.float16),
            rng.standard_normal(TEXT).astype(np.float16),
            {"sha256": key, "caption_digest": key},
        )
        for number in range(count)
    ]
    tar, index = pack(samples)
    storage.write("shards/32x32/0.tar", tar)
    storage.write("shards/32x32/0.idx", index)
    write_empty_prompt(storage, EmptyPrompt(np.zeros(TEXT, dtype=np.float16)))
    shard = Shard("shards/32x32/0", (32, 32), count, len(tar), sha256(tar))
    write_dataset(storage, make_dataset("key", {}, [shard], rejected=0))


def measure(folder: str, steps: int, size: Size, zero_stage: int) -> list[tuple[Times, Times]]:
    """Return the times of each block of (training loop, bare loop)."""
    from components.dataset.versions import read_dataset

    workdir = open_storage(folder)
    data, run = workdir.child("data"), workdir.child("run")
    (workdir.local_path() / "data").mkdir()  # type: ignore[operator]
    write_samples(data, 512, size)
    dataset = read_dataset(data)
    assert dataset is not None
    config = TrainConfig.parse(
        {"steps": steps, "global_batch": size.batch, "micro_batch": size.batch, "checkpoint": {"every": steps}}
        | {"metrics": {"log_every": 10}, "ema": {"decay": 0.98}, "zero_stage": zero_stage}
    )
    model, scheduler = build_unet(size)
    other, _ = build_unet(size)
    engine = Engine(model, make_loss(scheduler), config)
    bare = bare_loop(other, scheduler, size)
    monitor = PairedMonitor(run, config, Progress(io.StringIO()), is_main_rank=True, other=bare, block=size.block)
    monitor.start(0, [])
    drawing = Drawing(seed=0, timesteps=1000, scaling_factor=1.0, caption_dropout=0.1)
    reader = Reader(dataset, data, drawing, config, rank=0, world=1)
    with Saver(run, 0, 1, "bench", engine.shapes, config, monitor.save_failed) as saver:
        agreement, watchdog = Agreement(Stopping(), engine.device), Watchdog(0, Progress())
        train(Training(config, 0, engine, reader, saver, agreement, watchdog, monitor, lambda weights: None))  # type: ignore[arg-type,return-value]
    return monitor.blocks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="what is trained")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=0, help="one process has nothing to shard")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each loop")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    init_distributed("cpu")
    with tempfile.TemporaryDirectory() as folder:
        blocks = measure(folder, arguments.steps, size, arguments.zero_stage)[1:]  # the first block warms up
    print(f"{arguments.size}, ZeRO stage {arguments.zero_stage}, medians of {len(blocks)} pairs of blocks")
    for clock in Times._fields:
        ours, bare = ([getattr(times, clock) / size.block for times in column] for column in zip(*blocks, strict=True))
        ratio = statistics.median(mine / other for mine, other in zip(ours, bare, strict=True))
        print(
            f"  {clock:4}  training loop {statistics.median(ours) * 1e3:7.1f} ms per step, bare loop "
            f"{statistics.median(bare) * 1e3:7.1f}: {ratio:.3f} x"
        )


if __name__ == "__main__":
    main()
