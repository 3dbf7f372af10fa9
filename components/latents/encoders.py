"""The encoders of one model: pixels to the autoencoder's moments, captions to text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.errors import ConfigError
from components.latents.buckets import Bucket
from components.latents.config import LatentsConfig
from components.latents.text import TextEncoder
from components.model.locations import load_autoencoder, select_device, torch_dtype


@dataclass(frozen=True)
class Moments:
    """A batch of moments that a GPU may still be busy with.

    Attributes:
        values: fp16 ``[B, 2C, h, w]``: mean, then log-variance.
        finite: ``[B]``: whether all of a row fits fp16 and is a number.
        done: Recorded behind both, where they are copied from a GPU.
    """

    values: Tensor
    finite: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> tuple[NDArray[np.float16], list[bool]]:
        """Return the values and what is finite, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return self.values.numpy(), self.finite.tolist()


class Encoders:
    """The encoders of one model, loaded.

    Args:
        base: A diffusers folder.
        config: Settings.
        shapes: Height and width of the images to come.

    Attributes:
        text: Encodes captions.

    Raises:
        ConfigError: Where the autoencoder cannot halve images of such a size often enough.
    """

    def __init__(self, base: Path, config: LatentsConfig, shapes: Sequence[Bucket]) -> None:
        self._device = select_device(config.device)
        self._vae = load_autoencoder(base, config.vae_dtype, self._device)
        self._vae_dtype = torch_dtype(config.vae_dtype)
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        for height, width in shapes:
            if height % factor or width % factor:
                raise ConfigError(
                    f"latents.resolution {config.resolution} gives images of {height}x{width} pixels, expected "
                    f"multiples of {factor} for {base}; change it, or latents.bucket_step ({config.bucket_step})"
                )
        self.text = TextEncoder(base, config, self._device)

    @torch.inference_mode()
    def moments(self, pixels: NDArray[np.uint8]) -> Moments:
        """Begin to encode images.

        Args:
            pixels: 8-bit RGB, ``[B, H, W, 3]``.
        """
        images = torch.from_numpy(pixels)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            images = images.pin_memory().to(self._device, non_blocking=True)
        images = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # [B, 3, H, W]
        posterior = self._vae.encode(images.to(self._vae_dtype)).latent_dist
        values = torch.cat([posterior.mean, posterior.logvar], dim=1).half()
        finite = values.isfinite().flatten(1).all(1)
        if not on_gpu:
            return Moments(values, finite, None)
        moments = Moments(values.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
        assert moments.done is not None
        moments.done.record()
        return moments
