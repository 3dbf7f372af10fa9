"""How fast a model made from scratch trains on this machine, measured with a few steps."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from components.autoencoder.config import AutoencoderTraining, ScratchConfig
from components.autoencoder.training import train_autoencoder
from components.model.locations import quiet_libraries, reproducible, select_device, warnings_of_transformers_off
from components.progress import Progress

_STEPS = 4


class ScratchSpeed(NamedTuple):
    """Seconds of training on one process of this machine, while nothing else uses it.

    Attributes:
        autoencoder_step: Of one step of the autoencoder.
        unet_image: Of the UNet's forward and backward pass over one image.
    """

    autoencoder_step: float
    unet_image: float


def measure_speed(config: ScratchConfig, micro_batch: int) -> ScratchSpeed:
    """Train a model on noise for a few steps, and throw it away.

    Args:
        config: The model, and how its autoencoder is trained.
        micro_batch: Images per forward pass of the UNet.
    """
    build_scratch = _import_scratch()
    quiet_libraries()
    device = select_device(config.training.device)
    # A processor's own seconds do not count what other programs take of it; a GPU works on its own.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with reproducible(config.training.threads), torch.random.fork_rng():
        pipeline = build_scratch(config.architecture, ["a photo"], seed=0)
        autoencoder = _autoencoder_step(pipeline.vae.to(device), config, device, clock)
        unet = _unet_batch(pipeline.unet.to(device), config, micro_batch, device, clock)
    return ScratchSpeed(autoencoder, unet / micro_batch)


def _import_scratch() -> Any:
    with warnings_of_transformers_off():
        from components.autoencoder.scratch import build_scratch
    return build_scratch


def _autoencoder_step(vae: Any, config: ScratchConfig, device: torch.device, clock: Callable[[], float]) -> float:
    side, batch = config.architecture.resolution, config.training.batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

    def train(steps: int) -> float:
        short = config.training.model_dump() | {"steps": steps, "warmup_steps": 0}
        began = clock()
        train_autoencoder(vae, pixels, AutoencoderTraining.parse(short), 0, device, Progress(io.StringIO()))
        return clock() - began

    train(1)  # the first step also sets things up
    return train(_STEPS) / _STEPS


def _unet_batch(
    unet: Any, config: ScratchConfig, micro_batch: int, device: torch.device, clock: Callable[[], float]
) -> float:
    architecture = config.architecture
    side, text = architecture.latent_side, architecture.text
    latents = torch.zeros(micro_batch, architecture.autoencoder.latent_channels, side, side, device=device)
    tokens = torch.zeros(micro_batch, text.max_tokens, text.hidden, device=device)
    times = torch.zeros(micro_batch, dtype=torch.int64, device=device)

    def train(steps: int) -> float:
        began = clock()
        for _ in range(steps):
            unet(latents, times, tokens).sample.square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    train(1)
    return train(_STEPS) / _STEPS
