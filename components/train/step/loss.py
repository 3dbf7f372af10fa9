"""The denoising loss: what a UNet predicts from a noisy latent, compared with the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import ConfigError
from components.train.data.reader import MicroBatch

# Maps a model and a micro-batch to one loss per sample, [B].
Loss = Callable[[nn.Module, MicroBatch], Tensor]


def denoising_loss(
    model: nn.Module, scheduler: Any, batch: MicroBatch, layout: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Return each sample's mean squared error, ``[B]``, float32.

    The target follows the base model's scheduler: the noise (Ho et al. 2020, arXiv:2006.11239, eq. 14), the velocity
    ``v = α ε − σ x`` (Salimans & Ho 2022, arXiv:2202.00512, appendix D) or the sample itself.

    Args:
        model: The UNet; called with noisy latents, timesteps and text, and with SDXL's additional inputs.
        scheduler: A diffusers scheduler that adds noise; its configuration names what is predicted.
        batch: The micro-batch, on the model's device.
        layout: Memory layout of images; convolutions pass it on from layer to layer.

    Raises:
        ConfigError: If the scheduler predicts something else.
    """
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    noisy = noisy.contiguous(memory_format=layout)
    added = {} if batch.pooled is None else {"text_embeds": batch.pooled, "time_ids": batch.time_ids}
    conditioning = {"added_cond_kwargs": added} if added else {}
    predicted = model(noisy, batch.timesteps, encoder_hidden_states=batch.text, **conditioning).sample
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = batch.noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    elif kind == "sample":
        target = batch.latents
    else:
        raise ConfigError(f"the scheduler predicts {kind!r}; allowed: epsilon, v_prediction, sample")
    error: Tensor = predicted.float() - target.float()
    return error.square().mean(dim=(1, 2, 3))


def make_loss(scheduler: Any, channels_last: bool = False) -> Loss:
    """Return the denoising loss as a function of model and micro-batch, for the engine.

    Args:
        scheduler: As ``denoising_loss`` takes it.
        channels_last: Whether images are in memory with the channels last. The weights stay as they are: DeepSpeed puts
            them end to end, and a convolution follows its input.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def loss(model: nn.Module, batch: MicroBatch) -> Tensor:
        return denoising_loss(model, scheduler, batch, layout)

    return loss
