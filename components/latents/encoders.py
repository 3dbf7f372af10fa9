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
from components.image.buckets import Bucket
from components.latents.config import LatentsConfig
from components.latents.text_encoder import TextEncoder
from components.model.locations import load_autoencoder, select_device, torch_dtype


@dataclass(frozen=True)
class Moments:
    """A batch of moments that a GPU may still be computing.

    Attributes:
        values: fp16 ``[B, 2C, h, w]``: mean, then log-variance.
        finite: ``[B]``: whether all of a row fits fp16 and is a number.
        ready: For a GPU, the event after both were copied to the CPU; else None.
    """

    values: Tensor
    finite: Tensor
    ready: torch.cuda.Event | None

    def wait(self) -> tuple[NDArray[np.float16], list[bool]]:
        """Wait for the batch, and return its values and which rows are finite."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.values.numpy(), self.finite.tolist()


class Encoders:
    """The encoders of one model, loaded.

    Args:
        base: A diffusers folder.
        config: Settings.
        shapes: Heights and widths of the images to encode.

    Attributes:
        text: Encodes captions.

    Raises:
        ConfigError: If a height or width is no multiple of what the autoencoder divides it by.
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
        """Start to encode images; ``Moments.wait`` gives the result.

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
        assert moments.ready is not None
        moments.ready.record()
        return moments
