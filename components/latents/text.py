"""The text side of the encoding: captions to what a UNet looks at, as diffusers' pipelines make it.

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
    """What the text encoders make of a caption.

    Attributes:
        states: fp16 ``[L, D]``.
        pooled: fp16 ``[P]``, where the model has two encoders.
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
        device: Where to encode.

    Raises:
        ConfigError: Where the settings skip more layers than there are, or the two encoders do not go together.
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
        """Encode captions, each once; what has more tokens than an encoder takes is cut off.

        Each comes out with the same bytes whatever it is encoded with, before and beside: batches have one shape, and
        where that is not enough on this machine, each goes through the encoders alone.
        """
        wanted = dict.fromkeys(captions)
        missing = [caption for caption in wanted if caption not in self._cache]
        if not self._checked and len(missing) > 1:
            self._checked = True
            self._batch = self._batch if self._keeps_apart(missing[0]) else 1
        found = {caption: self._cache[caption] for caption in wanted if caption in self._cache}
        for first in range(0, len(missing), self._batch):
            batch = missing[first : first + self._batch]
            found.update(zip(batch, self.forward(batch + [""] * (self._batch - len(batch))), strict=False))
        for caption in wanted:
            self._cache[caption] = found[caption]
            self._cache.move_to_end(caption)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return found

    def _keeps_apart(self, caption: str) -> bool:
        """Tell whether a caption's bytes depend on nothing but itself, by encoding a batch forwards and backwards."""
        captions = [f"{number} {caption}" for number in range(self._batch)]
        there, back = self.forward(captions), self.forward(captions[::-1])[::-1]
        return all(_bytes(one) == _bytes(other) for one, other in zip(there, back, strict=True))

    @torch.inference_mode()
    def forward(self, captions: Sequence[str]) -> list[TextEmbedding]:
        """Put one batch of captions through the encoders."""
        texts = [encodable(caption) for caption in captions]
        states, pooled = [], None
        for tokenizer, encoder in self._encoders:
            ids = tokenizer(
                texts, padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt"
            ).input_ids
            said = encoder(ids.to(self._device), output_hidden_states=True)
            states.append(self._states(encoder, said))
            pooled = said.text_embeds.half() if len(self._encoders) > 1 and "text_embeds" in said else pooled
        joined = torch.cat(states, dim=-1).half()  # [B, L, D]
        finite = joined.isfinite().flatten(1).all(1)
        if pooled is not None:
            finite &= pooled.isfinite().all(1)
        pooled_rows = [None] * len(texts) if pooled is None else list(pooled.cpu().numpy())
        rows = zip(joined.cpu().numpy(), pooled_rows, finite.tolist(), strict=True)
        # Copies: a view of one row would keep the whole batch in memory.
        return [TextEmbedding(row.copy(), None if one is None else one.copy(), bool(fits)) for row, one, fits in rows]

    def _states(self, encoder: Any, said: Any) -> torch.Tensor:
        if len(self._encoders) > 1:
            chosen: torch.Tensor = said.hidden_states[-(self._skip + 2)]
        elif self._skip == 0:
            chosen = said.last_hidden_state
        else:
            inner = getattr(encoder, "text_model", encoder)  # where transformers keeps it depends on the class
            chosen = inner.final_layer_norm(said.hidden_states[-(self._skip + 1)])
        return chosen


def _bytes(embedding: TextEmbedding) -> tuple[bytes, bytes]:
    return embedding.states.tobytes(), b"" if embedding.pooled is None else embedding.pooled.tobytes()
