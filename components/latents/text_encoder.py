"""The text side of the encoding: captions, each encoded once, with bytes that depend on nothing but the caption.

How a text is read stands in `components.model.text_encoding`.
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
from components.model.locations import load_text_encoders
from components.model.text_encoding import encode_texts, tokens_at_once
from components.model.text_reading import TextReading, text_chunks


class TextEmbedding(NamedTuple):
    """The embedding of one caption.

    Attributes:
        states: fp16 ``[L, D]``, hidden states; of all chunks, one behind the other.
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
        tokens_at_once(self._encoders)
        self._reading = TextReading(text_chunks(config.text_chunks, base), config.clip_skip)
        layers = min(encoder.config.num_hidden_layers for _, encoder in self._encoders)
        if config.clip_skip + len(self._encoders) > layers:
            raise ConfigError(
                f"latents.clip_skip is {config.clip_skip}, but a text encoder of {base} has {layers} layers"
            )
        self._batch = config.text_batch_size
        self._checked = self._batch == 1
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._cache_size = config.caption_cache

    def encode(self, captions: Sequence[str]) -> dict[str, TextEmbedding]:
        """Encode captions, each once; a caption with more tokens than its chunks take is cut off.

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
        joined, pooled = encode_texts(self._encoders, captions, self._reading)
        joined = joined.half()  # [B, L, D]
        finite = joined.isfinite().flatten(1).all(1)
        pooled_rows: list[Any] = [None] * len(captions)
        if pooled is not None:
            pooled = pooled.half()
            finite &= pooled.isfinite().all(1)
            pooled_rows = list(pooled.cpu().numpy())
        rows = zip(joined.cpu().numpy(), pooled_rows, finite.tolist(), strict=True)
        # Copies: a view of one row would keep the whole batch in memory.
        return [TextEmbedding(row.copy(), None if one is None else one.copy(), bool(fits)) for row, one, fits in rows]


def _bytes(embedding: TextEmbedding) -> tuple[bytes, bytes]:
    return embedding.states.tobytes(), b"" if embedding.pooled is None else embedding.pooled.tobytes()
