"""Images per second and MFU of training Stable Diffusion 2's UNet at 512² from cached latents, and where the time goes.

    python -m tests.benchmarks.stable_diffusion [--micro-batch 64] [--compile] [--profile] [--set section=value …]

It needs a GPU; ``--tiny`` runs the same on a CPU with a UNet of a million parameters, to see that the script works. The
weights are random and the latents are noise, which costs what real ones do. The training is the real one: processes
started by ``python -m components.train``, shards read from disk, moving average, metrics, a checkpoint at the end. The
published bar is 128 images/s per H200 (MLPerf Training v4.0, Stable Diffusion 2, 512²).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, pack
from components.dataset.versions import Shard, make_dataset, write_dataset
from components.digests import sha256
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.data.reader import MicroBatch
from components.train.step.engine import Engine, init_distributed
from components.train.step.loss import make_loss
from tests.models import commit_all

BASE, KEY, RUN = "models/base/bench", "key", "bench"
SHARDS, SHARD_SAMPLES = 16, 256
WARM_UP = 10  # steps that do not count: compilation, autotuning, the allocator
# stabilityai/stable-diffusion-2-base: 865,910,724 parameters.
SD2 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
TOKENS = 77


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """Write a base model as far as training reads it: an untrained UNet, a scheduler, the autoencoder's scale."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    UNet2DConditionModel(**shape).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    AutoencoderKL(scaling_factor=0.18215, block_out_channels=(32,)).save_config(folder / "vae")
    commit_all(open_storage(str(folder)))


def write_latents(storage: Storage, shape: dict[str, Any]) -> None:
    """Write a dataset of noise in the shapes of real latents and text embeddings."""
    rng = np.random.default_rng(0)
    side, width = shape["sample_size"], shape["cross_attention_dim"]
    shards = []
    for number in range(SHARDS):
        samples = [_sample(rng, f"{number}-{i}", side, width) for i in range(SHARD_SAMPLES)]
        tar, index = pack(samples)
        name = f"shards/{8 * side}x{8 * side}/{number:016x}"
        storage.write(f"{name}.tar", tar)
        storage.write(f"{name}.idx", index)
        shards.append(Shard(name, (8 * side, 8 * side), SHARD_SAMPLES, len(tar), sha256(tar)))
    write_empty_prompt(storage, EmptyPrompt(np.zeros((TOKENS, width), dtype=np.float16)))
    write_dataset(storage, make_dataset(KEY, {}, shards, rejected=0))


def _sample(rng: np.random.Generator, name: str, side: int, width: int) -> Sample:
    key = sha256(name.encode())
    moments = rng.standard_normal((8, side, side), dtype=np.float32).astype(np.float16)
    text = rng.standard_normal((TOKENS, width), dtype=np.float32).astype(np.float16)
    return Sample(key, moments, text, {"sha256": key, "caption": name, "caption_digest": key})


def train(workdir: Storage, settings: list[str]) -> list[dict[str, Any]]:
    """Train, and return what each step after the first ones cost."""
    command = [sys.executable, "-m", "components.train", "--workdir", workdir.url, "--run", RUN]
    command += ["--encoding-key", KEY, "--base-model", f"workdir:{BASE}"]
    for text in settings:
        command += ["--set", text]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(
            f"training ended with exit code {ended.returncode}:\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}"
        )
    return list(workdir.read_lines(f"runs/{RUN}/metrics.jsonl"))[WARM_UP:]


def tell(steps: list[dict[str, Any]], batch: int) -> None:
    """Print images per second, MFU and the share of time that ranks waited for data."""
    seconds = statistics.median(step["seconds"] for step in steps)
    waited = sum(step["data_wait"] for step in steps) / sum(step["seconds"] for step in steps)
    mfu = [step["mfu"] for step in steps if step.get("mfu") is not None]
    print(f"{batch / seconds:8.1f} images/s ({seconds * 1e3:.1f} ms per step of {batch}, median of {len(steps)} steps)")
    print(f"{100 * waited:8.2f} % of the time waited for data")
    print(f"{100 * statistics.median(mfu):8.1f} % MFU" if mfu else "     MFU unknown: this device's peak is not")


def batches(config: TrainConfig, shape: dict[str, Any]) -> Iterator[list[MicroBatch]]:
    """Yield one rank's steps of batches of noise, on the host as the reader gives them."""
    side, rows = shape["sample_size"], config.micro_batch
    while True:
        yield [
            MicroBatch(
                latents=torch.randn(rows, 4, side, side),
                noise=torch.randn(rows, 4, side, side),
                timesteps=torch.randint(0, 1000, (rows,)),
                text=torch.randn(rows, TOKENS, shape["cross_attention_dim"]),
                weights=torch.ones(rows),
            )
        ]


def profile(workdir: Storage, shape: dict[str, Any], config: TrainConfig, steps: int = 3) -> str:
    """Return where the time of some steps goes, by kernel; in this process, on one device."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from torch.profiler import ProfilerActivity

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    gpu = torch.cuda.is_available()
    init_distributed("cuda" if gpu else "cpu")
    folder = workdir.local_path(BASE)
    assert folder is not None
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    if config.performance.compile:
        unet.compile()
    engine = Engine(unet, make_loss(scheduler, config.performance.channels_last), config)
    source = batches(config, shape)
    for _ in range(3):
        engine.step(next(source), 1e-4)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            engine.step(next(source), 1e-4)
    key = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60))


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small UNet, for machines without a GPU")
    parser.add_argument("--micro-batch", type=int, default=64, help="images per forward pass and device")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps, of which the first 10 do not count")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    parser.add_argument("--profile", action="store_true", help="print which kernels take the time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of training")
    arguments = parser.parse_args(argv)
    if not (arguments.tiny or torch.cuda.is_available()):
        raise SystemExit("Stable Diffusion 2 at 512² needs a GPU; --tiny runs a small UNet on this machine")
    ranks = max(1, torch.cuda.device_count())
    values: dict[str, Any] = {"steps": arguments.steps, "micro_batch": arguments.micro_batch, "ranks": ranks}
    values |= {"global_batch": ranks * arguments.micro_batch, "zero_stage": 1, "precision": "bf16"}
    values |= {"performance": {"compile": arguments.compile, "channels_last": not arguments.tiny}}
    values |= {"checkpoint": {"every": arguments.steps}, "metrics": {"log_every": arguments.steps}}
    values |= {"validation": {"every": None}}
    settings = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    shape = TINY if arguments.tiny else SD2
    with tempfile.TemporaryDirectory() as root:
        write_model(Path(root) / BASE, shape)
        workdir = open_storage(root)
        (Path(root) / "datasets" / KEY).mkdir(parents=True)
        write_latents(workdir.child(f"datasets/{KEY}"), shape)
        tell(train(workdir, settings + arguments.set), ranks * arguments.micro_batch)
        if arguments.profile:
            print(profile(workdir, shape, TrainConfig.parse({**values, "global_batch": arguments.micro_batch})))


if __name__ == "__main__":
    main()
