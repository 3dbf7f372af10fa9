"""Samples per second of the training loop beside a bare forward + backward + AdamW loop of the same UNet.

    python tests/benchmarks/training_step.py [--steps 120] [--batch 64]

Both run in one process on one core, a block of each in turn, so that a busy machine slows both alike. The training
loop also reads shards, draws noise, clips, averages weights, agrees with other ranks and writes metrics.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.architecture import Architecture
from components.dataset import Shard, make_dataset, write_dataset
from components.digests import sha256
from components.progress import Progress
from components.shards import Sample, pack
from components.storage import Storage, open_storage
from components.train.agreement import Agreement
from components.train.config import TrainConfig
from components.train.diffusion import denoising_loss
from components.train.engine import Engine, init_distributed
from components.train.monitor import Monitor
from components.train.reader import Drawing, MicroBatch, Reader
from components.train.saver import Saver
from components.train.stopping import Stopping
from components.train.train import Training, train
from components.train.watchdog import Watchdog

BLOCK = 10
TEXT = (8, 64)
LATENT = (4, 4, 4)


class PairedMonitor(Monitor):
    """Times the steps between its calls, and after every block of them a block of something else."""

    def __init__(self, *arguments: Any, other: Callable[[], None], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._other = other
        self._began = time.perf_counter()
        self.blocks: list[tuple[float, float]] = []

    def step(self, step: int, **metrics: float) -> None:
        super().step(step, **metrics)
        if step % BLOCK == 0:
            middle = time.perf_counter()
            for _ in range(BLOCK):
                self._other()
            end = time.perf_counter()
            self.blocks.append((middle - self._began, end - middle))
            self._began = time.perf_counter()


def bare_loop(model: nn.Module, scheduler: Any, batch: int) -> Callable[[], None]:
    """Return one step of the least that training can be."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    given = MicroBatch(
        latents=torch.randn(batch, *LATENT),
        noise=torch.randn(batch, *LATENT),
        timesteps=torch.randint(0, 1000, (batch,)),
        text=torch.randn(batch, *TEXT),
        weights=torch.ones(batch),
    )

    def step() -> None:
        denoising_loss(model, scheduler, given).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_unet() -> tuple[nn.Module, Any]:
    """Return the demo's UNet and its noise schedule."""
    from diffusers import DDPMScheduler

    from components.scratch import build_scratch

    pipeline = build_scratch(Architecture(), ["a handwritten digit three"], seed=0)
    return pipeline.unet.train(), DDPMScheduler.from_config(pipeline.scheduler.config)


def write_samples(storage: Storage, count: int) -> None:
    """Write a dataset of random latents."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            key := sha256(b"%d" % number),
            rng.standard_normal((2 * LATENT[0], *LATENT[1:])).astype(np.float16),
            rng.standard_normal(TEXT).astype(np.float16),
            {"sha256": key, "caption_digest": key},
        )
        for number in range(count)
    ]
    tar, index = pack(samples)
    storage.write("shards/32x32/0.tar", tar)
    storage.write("shards/32x32/0.idx", index)
    local = storage.local_path("empty.npy")
    assert local is not None
    np.save(local, np.zeros(TEXT, dtype=np.float16), allow_pickle=False)
    shard = Shard("shards/32x32/0", (32, 32), count, len(tar), sha256(tar))
    write_dataset(storage, make_dataset("key", {}, [shard], rejected=0))


def loss_of(scheduler: Any, model: nn.Module, batch: MicroBatch) -> Tensor:
    """Return the loss as the engine calls for it."""
    return denoising_loss(model, scheduler, batch)


def measure(folder: str, steps: int, batch: int) -> list[tuple[float, float]]:
    """Return the seconds of each block of (training loop, bare loop)."""
    from components.dataset import read_dataset

    workdir = open_storage(folder)
    data, run = workdir.child("data"), workdir.child("run")
    (workdir.local_path() / "data").mkdir()  # type: ignore[operator]
    write_samples(data, 512)
    dataset = read_dataset(data)
    assert dataset is not None
    config = TrainConfig(
        steps=steps, global_batch=batch, micro_batch=batch, checkpoint_every=steps, log_every=10, ema_decay=0.98
    )
    model, scheduler = build_unet()
    other, _ = build_unet()
    engine = Engine(model, partial(loss_of, scheduler), config)
    monitor = PairedMonitor(run, config, Progress(io.StringIO()), speaks=True, other=bare_loop(other, scheduler, batch))
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
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each loop")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    init_distributed("cpu")
    with tempfile.TemporaryDirectory() as folder:
        blocks = measure(folder, arguments.steps, arguments.batch)[1:]  # the first block warms up
    images = BLOCK * arguments.batch
    ours, bare = (statistics.median(column) for column in zip(*blocks, strict=True))
    ratio = statistics.median(mine / other for mine, other in blocks)
    print(f"training loop  {images / ours:8.1f} samples/s")
    print(f"bare loop      {images / bare:8.1f} samples/s")
    print(f"step time of the training loop: {ratio:.3f} x the bare loop's (median of {len(blocks)} pairs of blocks)")


if __name__ == "__main__":
    main()
