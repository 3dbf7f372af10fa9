"""Training of a variational autoencoder: the same images, settings and seed give the same weights.

The loss is a mean absolute and squared error of the pixels plus a tiny Kullback-Leibler term (Kingma & Welling,
"Auto-Encoding Variational Bayes", 2014; weighted as by Rombach et al., CVPR 2022, without their perceptual and
adversarial terms, which need pretrained networks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.autoencoder.config import AutoencoderTraining
from components.errors import ConfigError
from components.progress import Progress
from components.rng import Stream, generator, normals

Pixels = NDArray[np.uint8]


def train_autoencoder(
    vae: Any, images: Pixels, config: AutoencoderTraining, seed: int, device: torch.device, progress: Progress
) -> float:
    """Train an ``AutoencoderKL`` in place.

    Args:
        vae: The model, on ``device``.
        images: 8-bit RGB, ``[N, H, W, 3]``, N ≥ 1.
        config: Settings.
        seed: Of the batches' order and of the noise.
        device: The device that the model is on.
        progress: Reports each step.

    Returns:
        The loss of the last step.

    Raises:
        ConfigError: If the loss becomes infinite or not a number.
    """
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))
    vae.train()
    loss = math.nan
    batches = batch_numbers(len(images), config, seed)
    for step, numbers in enumerate(progress.track(batches, "autoencoder steps", config.steps)):
        pixels = as_input(images[numbers], device)  # [B, 3, H, W]
        total = _loss(vae, pixels, config, seed, first=step * config.batch_size)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), config.gradient_clip)
        optimizer.step()
        schedule.step()
        loss = total.item()
        if not math.isfinite(loss):
            raise ConfigError(
                f"the autoencoder's loss is {loss} at step {step}, expected a finite number; "
                f"lower model.scratch.training.learning_rate (now {config.learning_rate})"
            )
    vae.eval()
    return loss


def rate(step: int, config: AutoencoderTraining) -> float:
    """Return the learning rate of a step as a share of the peak: a linear rise, times a linear fall to 0."""
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return rise * (1 - step / config.steps)


def batch_numbers(images: int, config: AutoencoderTraining, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the image numbers of each step's batch, ``[B]``; every image comes once before any comes again."""
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(config.steps):
        numbers = np.empty(config.batch_size, dtype=np.int64)
        for i, position in enumerate(range(step * config.batch_size, (step + 1) * config.batch_size)):
            if position // images != epoch:
                epoch = position // images
                order = generator(seed, epoch, 0, Stream.AUTOENCODER_BATCH).permutation(images)
            numbers[i] = order[position % images]
        yield numbers


@torch.no_grad()
def normalise_latents(vae: Any, images: Pixels, batch_size: int, device: torch.device) -> None:
    """Change a trained model in place so that each channel of its latents has mean 0 and variance 1 over the images.

    Stable Diffusion only divides by one number, its ``scaling_factor`` (Rombach et al., section G), and leaves the
    channels' means where they are, although sampling begins at a mean of 0. Here shift and scale go into the 1×1
    convolutions that end the encoder and begin the decoder; the decoded images stay the same and the factor becomes 1.
    """
    mean, deviation = _latent_statistics(vae, images, batch_size, device)
    channels = len(mean)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    encode.bias[:channels] = (encode.bias[:channels] - mean) / deviation
    encode.bias[channels:] -= 2 * deviation.log()  # the second half is the logarithm of the variance
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= deviation.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


def _latent_statistics(
    vae: Any, images: Pixels, batch_size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each latent channel, ``[C]`` each, over all images and positions.

    A latent is drawn from N(mean, variance), so the variance of all latents is the mean of the variances plus the
    variance of the means.
    """
    count, means, squares, variances = 0, 0.0, 0.0, 0.0
    for first in range(0, len(images), batch_size):
        posterior = vae.encode(as_input(images[first : first + batch_size], device)).latent_dist
        mean, variance = posterior.mean.double(), posterior.var.double()
        count += mean.numel() // mean.shape[1]
        means += mean.sum(dim=(0, 2, 3))
        squares += mean.square().sum(dim=(0, 2, 3))
        variances += variance.sum(dim=(0, 2, 3))
    centre = torch.as_tensor(means / count)
    spread = torch.as_tensor((squares + variances) / count) - centre.square()
    return centre.float(), spread.sqrt().float()


def as_input(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """Turn 8-bit ``[B, H, W, 3]`` into fp32 ``[B, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(vae: Any, pixels: torch.Tensor, config: AutoencoderTraining, seed: int, first: int) -> torch.Tensor:
    posterior = vae.encode(pixels).latent_dist
    positions = range(first, first + len(pixels))
    noise = normals(seed, 0, positions, Stream.AUTOENCODER_NOISE, tuple(posterior.mean.shape[1:]))
    latents = posterior.mean + posterior.std * torch.from_numpy(noise).to(pixels.device)
    error = vae.decode(latents).sample - pixels
    reconstruction = config.l1_weight * error.abs().mean() + config.mse_weight * error.square().mean()
    total: torch.Tensor = reconstruction + config.kl_weight * posterior.kl().mean()
    return total
