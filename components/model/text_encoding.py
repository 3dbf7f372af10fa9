"""From a text to what a UNet attends to: captions, prompts and the empty prompt are all read by `encode_texts`.

Stable Diffusion 1 and 2 take the last hidden states of one encoder; with ``clip_skip``, those of an earlier layer, put
through the final normalisation. SDXL (Podell et al., arXiv:2307.01952, §2.1) takes the hidden states before the last
layer of two encoders, side by side, and the pooled embedding of the second. All as diffusers' pipelines compute it.

A CLIP text encoder reads *L* tokens at once, 77 for Stable Diffusion: a beginning, up to *L* - 2 tokens of the text, an
end, padding. A longer text is read in chunks: its tokens are cut after each *L* - 2, each chunk gets a beginning, an
end and padding of its own and goes through the encoder alone, and the hidden states of all chunks are put one behind
the other, ``[n·L, D]``. A text that ends earlier has chunks that are read as the empty prompt is, so all texts have one
shape. SDXL's pooled embedding is the first chunk's.

That is what AUTOMATIC1111's stable-diffusion-webui does (``modules/sd_hijack_clip.py``), and with it the libraries that
make ``prompt_embeds`` for diffusers. kohya's sd-scripts (``library/strategy_sd.py``, ``max_token_length`` 150 and 225)
cut texts at the same tokens and then drop the inner beginnings and ends, ``[n·(L - 2) + 2, D]``. We keep them: people
draw with the former even from models trained with the latter; no state is cut out of the sequence in which it was
computed; and models that pad with another token than the end (Stable Diffusion 2, SDXL) need no exception, which
sd-scripts make and doubt. Unlike the webui, nothing is moved to make a chunk end at a comma: a text is cut where it is
full, so whoever reads it again cuts it alike.

The text is turned into tokens once and as a whole. So a word at the end of a chunk may go on in the next one, but it
consists of the same tokens as anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from components.errors import ConfigError
from components.model.locations import encodable
from components.model.text_reading import TextReading

# A CLIPTokenizer and its CLIPTextModel; both libraries type them as Any.
Encoder = tuple[Any, Any]


def tokens_at_once(encoders: Sequence[Encoder]) -> int:
    """Return how many tokens *L* the text encoders of a model read at once, beginning and end included.

    Raises:
        ConfigError: If two encoders differ in it.
    """
    lengths = {min(tokenizer.model_max_length, model.config.max_position_embeddings) for tokenizer, model in encoders}
    if len(lengths) > 1:
        raise ConfigError(f"the text encoders take {sorted(lengths)} tokens, expected the same number each")
    return int(lengths.pop())


def encode_texts(
    encoders: Sequence[Encoder], texts: Sequence[str], reading: TextReading
) -> tuple[Tensor, Tensor | None]:
    """Encode texts; what is longer than all chunks together is cut off.

    Args:
        encoders: The text encoder of a model with its tokenizer, or SDXL's two.
        texts: What to encode.
        reading: In how many chunks *n*, and from which layer.

    Returns:
        Hidden states ``[B, n·L, D]`` and, of two encoders, the pooled embedding ``[B, P]``, in the encoders' dtype.
    """
    tokens = tokens_at_once(encoders)
    states, pooled = [], None
    for tokenizer, encoder in encoders:
        # Each chunk is a batch of its own, so its numbers are those that it would have as a text of its own.
        outputs = [
            encoder(torch.tensor(ids, device=encoder.device), output_hidden_states=True)
            for ids in token_chunks(tokenizer, texts, tokens, reading.chunks)
        ]
        chunks = [_states(encoder, output, reading.clip_skip, len(encoders)) for output in outputs]
        states.append(torch.cat(chunks, dim=1))  # n × [B, L, D] → [B, n·L, D]
        if "text_embeds" in outputs[0]:  # only SDXL's second encoder has one
            pooled = outputs[0].text_embeds
    return torch.cat(states, dim=-1), pooled


def token_chunks(tokenizer: Any, texts: Sequence[str], tokens: int, chunks: int) -> list[list[list[int]]]:
    """Return each chunk as the numbers of its tokens: ``chunks`` lists with a list of ``tokens`` numbers per text."""
    begin, end = tokenizer("").input_ids
    room = tokens - 2
    ids = tokenizer([encodable(text) for text in texts], add_special_tokens=False, verbose=False).input_ids

    def chunk(number: int, of_text: Sequence[int]) -> list[int]:
        part = of_text[number * room : (number + 1) * room]
        return [begin, *part, end] + [tokenizer.pad_token_id] * (room - len(part))

    return [[chunk(number, of_text) for of_text in ids] for number in range(chunks)]


def _states(encoder: Any, output: Any, clip_skip: int, encoders: int) -> Tensor:
    if encoders > 1:
        states: Tensor = output.hidden_states[-(clip_skip + 2)]
    elif clip_skip == 0:
        states = output.last_hidden_state
    else:
        inner = getattr(encoder, "text_model", encoder)  # its attribute in transformers depends on the class
        states = inner.final_layer_norm(output.hidden_states[-(clip_skip + 1)])
    return states
