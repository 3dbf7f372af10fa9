"""The two encoders: pixels to the autoencoder's moments, captions to text embeddings."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from components.errors import ConfigError
from components.latents.config import LatentsConfig
from components.models import encodable, load_autoencoder, load_text_encoder, select_device, torch_dtype


class Encoders:
    """The encoders of one model, loaded.

    Args:
        base: A diffusers folder.
        config: Settings.

    Raises:
        ConfigError: Where the autoencoder cannot halve images of the wanted size often enough.
    """

    def __init__(self, base: Path, config: LatentsConfig) -> None:
        self._device = select_device(config.device)
        self._vae = load_autoencoder(base, config.vae_dtype, self._device)
        self._vae_dtype = torch_dtype(config.vae_dtype)
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        if config.resolution % factor:
            raise ConfigError(f"latents.resolution is {config.resolution}, expected a multiple of {factor} for {base}")
        self._tokenizer, self._text_encoder = load_text_encoder(base, config.text_dtype, self._device)
        limit = self._text_encoder.config.max_position_embeddings
        self._tokens = min(self._tokenizer.model_max_length, limit)
        self._captions: OrderedDict[str, NDArray[np.float16]] = OrderedDict()
        self._caption_cache = config.caption_cache

    @torch.inference_mode()
    def moments(self, pixels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Encode images.

        Args:
            pixels: 8-bit RGB, ``[B, H, W, 3]``.

        Returns:
            Mean, then log-variance, ``[B, 2C, h, w]``; numbers too large for fp16 are infinite.
        """
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1  # [B, 3, H, W]
        posterior = self._vae.encode(images.to(self._vae_dtype)).latent_dist
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
        return np.asarray(moments.half().cpu().numpy(), dtype=np.float16)

    def text(self, caption: str) -> NDArray[np.float16]:
        """Encode one caption, ``[L, D]``; what has more tokens than the encoder takes is cut off.

        Each caption goes through the encoder alone: the last bits of its embedding then depend neither on the
        captions beside it nor on where a killed step began again.
        """
        if caption not in self._captions:
            self._captions[caption] = self._text(caption)
            if len(self._captions) > self._caption_cache:
                self._captions.popitem(last=False)
        self._captions.move_to_end(caption)
        return self._captions[caption]

    @torch.inference_mode()
    def _text(self, caption: str) -> NDArray[np.float16]:
        tokens = self._tokenizer(
            encodable(caption), padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt"
        )
        states = self._text_encoder(tokens.input_ids.to(self._device)).last_hidden_state[0]  # [L, D]
        return np.asarray(states.half().cpu().numpy(), dtype=np.float16)
