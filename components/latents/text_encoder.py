"""The text side of the encoding: from captions to a UNet's conditioning, computed as diffusers' pipelines do.

Stable Diffusion 1 and 2 take the last hidden states of one encoder; with ``clip_skip``, those of an earlier layer, put
through the final normalisation. SDXL (Podell et al., arXiv:2307.01952, §2.1) takes the hidden states before the last
layer of two encoders, side by side, and the pooled embedding of the second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from components.errors import ConfigError
from components.latents.config import LatentsConfig
from components.model.locations import encodable, load_text_encoders


class TextEmbedding(NamedTuple):
    """The embedding of one caption.

    Attributes:
        states: fp16 ``[L, D]``, hidden states.
        pooled: fp16 ``[P]`` if the model has two encoders, else None.
        finite: Whether all of it fits fp16 and is a number.
    """

    states: NDArray[np.float16]
    pooled: NDArray[np.float16] | None
    finite: bool


class TextEncoder:
    """One text encoder with its tokenizer, or SDXL's two.

    Args:
        base: A diffusers folder.
        config: Settings.
        device: The device to encode on.

    Raises:
        ConfigError: If the settings skip more layers than there are, or the two encoders do not fit together.
    """

    def __init__(self, base: Path, config: LatentsConfig, device: torch.device) -> None:
        self._device = device
        self._encoders = load_text_encoders(base, config.text_dtype, device)
        self._skip = config.clip_skip
        lengths = [
            min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            for tokenizer, encoder in self._encoders
        ]
        if len(set(lengths)) > 1:
            raise ConfigError(f"the text encoders of {base} take {lengths} tokens, expected the same number each")
        self._tokens = lengths[0]
        layers = min(encoder.config.num_hidden_layers for _, encoder in self._encoders)
        if self._skip + len(self._encoders) > layers:
            raise ConfigError(f"latents.clip_skip is {self._skip}, but a text encoder of {base} has {layers} layers")
        self._batch = config.text_batch_size
        self._checked = self._batch == 1
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._cache_size = config.caption_cache

    def encode(self, captions: Sequence[str]) -> dict[str, TextEmbedding]:
        """Encode captions, each once; a caption with more tokens than an encoder takes is cut off.

        A caption's bytes do not depend on the captions encoded before it or in the same batch: all batches have one
        shape, and if that is not enough on this machine, captions go through the encoders one by one.
        """
        distinct = dict.fromkeys(captions)
        missing = [caption for caption in distinct if caption not in self._cache]
        if not self._checked and len(missing) > 1:
            self._checked = True
            self._batch = self._batch if self._is_independent(missing[0]) else 1
        embeddings = {caption: self._cache[caption] for caption in distinct if caption in self._cache}
        for first in range(0, len(missing), self._batch):
            batch = missing[first : first + self._batch]
            embeddings.update(zip(batch, self.forward(batch + [""] * (self._batch - len(batch))), strict=False))
        for caption in distinct:
            self._cache[caption] = embeddings[caption]
            self._cache.move_to_end(caption)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return embeddings

    def _is_independent(self, caption: str) -> bool:
        """Tell whether a caption's bytes depend on nothing but itself, by encoding a batch forwards and backwards."""
        captions = [f"{number} {caption}" for number in range(self._batch)]
        forwards, backwards = self.forward(captions), self.forward(captions[::-1])[::-1]
        return all(_bytes(one) == _bytes(other) for one, other in zip(forwards, backwards, strict=True))

    @torch.inference_mode()
    def forward(self, captions: Sequence[str]) -> list[TextEmbedding]:
        """Put one batch of captions through the encoders."""
        texts = [encodable(caption) for caption in captions]
        states, pooled = [], None
        for tokenizer, encoder in self._encoders:
            ids = tokenizer(
                texts, padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt"
            ).input_ids
            output = encoder(ids.to(self._device), output_hidden_states=True)
            states.append(self._states(encoder, output))
            pooled = output.text_embeds.half() if len(self._encoders) > 1 and "text_embeds" in output else pooled
        joined = torch.cat(states, dim=-1).half()  # [B, L, D]
        finite = joined.isfinite().flatten(1).all(1)
        if pooled is not None:
            finite &= pooled.isfinite().all(1)
        pooled_rows = [None] * len(texts) if pooled is None else list(pooled.cpu().numpy())
        rows = zip(joined.cpu().numpy(), pooled_rows, finite.tolist(), strict=True)
        # Copies: a view of one row would keep the whole batch in memory.
        return [TextEmbedding(row.copy(), None if one is None else one.copy(), bool(fits)) for row, one, fits in rows]

    def _states(self, encoder: Any, output: Any) -> torch.Tensor:
        if len(self._encoders) > 1:
            states: torch.Tensor = output.hidden_states[-(self._skip + 2)]
        elif self._skip == 0:
            states = output.last_hidden_state
        else:
            inner = getattr(encoder, "text_model", encoder)  # its attribute in transformers depends on the class
            states = inner.final_layer_norm(output.hidden_states[-(self._skip + 1)])
        return states


def _bytes(embedding: TextEmbedding) -> tuple[bytes, bytes]:
    return embedding.states.tobytes(), b"" if embedding.pooled is None else embedding.pooled.tobytes()
