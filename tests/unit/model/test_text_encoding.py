"""A text is read in chunks: whole, in the tokens that it has anywhere, and as transformers reads each chunk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.autoencoder.scratch import build_scratch, build_tokenizer
from components.errors import ConfigError
from components.latents.config import LatentsConfig
from components.latents.text_encoder import TextEncoder
from components.model.architecture import Architecture
from components.model.locations import encodable
from components.model.text_encoding import Encoder, encode_texts, token_chunks, tokens_at_once
from components.model.text_reading import TextReading

LENGTH = 77
SIZES = {
    "resolution": 16,
    "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
    "text": {"hidden": 8, "layers": 2, "heads": 2, "max_tokens": LENGTH, "vocabulary": 700},
    "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TOKENIZER = build_tokenizer(NUMBERS, Architecture.parse(SIZES).text)
# A hundred tokens: more than one chunk has, less than two have.
LONG = " ".join(NUMBERS * 10)
TEXTS = [
    "",
    "one two",
    LONG,
    " ".join(["seven"] * 75),
    " ".join(["seven"] * 76),
    "👩‍👩‍👧‍👦🏳️‍🌈" * 30,
    "supercalifragilistic" * 40,
    "猫が座っている" * 20,
    "one <|endoftext|> two <|startoftext|>",
    "a lone surrogate \ud83d",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(Architecture.parse(SIZES), NUMBERS, seed=1).save_pretrained(folder)
    return folder


def encoder(base: Path, **settings: Any) -> TextEncoder:
    return TextEncoder(base, LatentsConfig.parse(settings), torch.device("cpu"))


@pytest.mark.parametrize("text", TEXTS)
def test_one_chunk_is_what_the_tokenizer_makes_of_a_text(text: str) -> None:
    expected = TOKENIZER(encodable(text), padding="max_length", max_length=LENGTH, truncation=True).input_ids
    assert token_chunks(TOKENIZER, [text], LENGTH, 1) == [[expected]]


@given(st.text(max_size=400))
def test_chunks_have_the_tokens_of_the_text_in_order_and_no_others(text: str) -> None:
    whole = TOKENIZER(encodable(text), add_special_tokens=False, verbose=False).input_ids
    chunks = token_chunks(TOKENIZER, ["one", text], 20, 8)
    joined: list[int] = []
    for _, ids in chunks:
        assert len(ids) == 20
        assert ids[0] == TOKENIZER.bos_token_id
        length = min(18, len(whole) - len(joined))
        assert ids[1 + length :] == [TOKENIZER.eos_token_id] + [TOKENIZER.pad_token_id] * (18 - length)
        joined += ids[1 : 1 + length]
    assert joined == whole[: 8 * 18], "no word is split into other tokens than without chunks"
    assert chunks[7][0] == TOKENIZER("", padding="max_length", max_length=20).input_ids


def test_the_end_of_a_long_caption_counts_if_there_are_chunks_for_it(base: Path) -> None:
    other = LONG.removesuffix("nine") + "eight"
    captions = [LONG, other]
    one = encoder(base).encode(captions)
    assert one[LONG].states.shape == (LENGTH, 8)
    assert one[LONG].states.tobytes() == one[other].states.tobytes()
    two = encoder(base, text_chunks=2).encode(captions)
    assert two[LONG].states.shape == (2 * LENGTH, 8)
    assert two[LONG].states.tobytes() != two[other].states.tobytes()
    assert two[LONG].states[:LENGTH].tobytes() == one[LONG].states.tobytes(), "the first chunk is what it was"


@pytest.mark.parametrize("skip", [0, 1])
def test_bytes_are_those_of_transformers(base: Path, skip: int) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    model = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    words, parts = LONG.split(), []
    for text in (" ".join(words[:75]), " ".join(words[75:]), ""):
        ids = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.inference_mode():
            output = model(ids, output_hidden_states=True)
            last = output.last_hidden_state
            parts.append(model.final_layer_norm(output.hidden_states[-2]) if skip else last)
    expected = torch.cat(parts, dim=1).half().numpy()[0]
    embeddings = encoder(base, text_chunks=3, clip_skip=skip, text_batch_size=1).encode([LONG])
    assert embeddings[LONG].states.tobytes() == expected.tobytes()


def test_bytes_depend_on_the_caption_alone(base: Path) -> None:
    texts = [encodable(text) for text in TEXTS]
    together = encoder(base, text_chunks=2, text_batch_size=4).encode(texts)
    backwards = encoder(base, text_chunks=2, text_batch_size=4).encode(texts[::-1])
    for text in texts:
        alone = encoder(base, text_chunks=2, text_batch_size=4).encode([text])
        assert alone[text].states.tobytes() == together[text].states.tobytes() == backwards[text].states.tobytes()


def test_a_padding_of_its_own_is_what_ends_each_chunk(base: Path, tmp_path: Path) -> None:
    """Stable Diffusion 2 and SDXL's second tokenizer pad with another token than the end."""
    from transformers import CLIPTokenizer

    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", pad_token="!")
    (first,), (second,) = token_chunks(tokenizer, [LONG], LENGTH, 2)
    assert (first[-1], second[0]) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert second[26:] == [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * 50]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_encoders_of_different_lengths_are_rejected(base: Path) -> None:
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(base / "text_encoder")
    longer = build_tokenizer(NUMBERS, Architecture.parse({**SIZES, "text": {"max_tokens": 20}}).text)
    encoders: list[Encoder] = [(TOKENIZER, model), (longer, model)]
    with pytest.raises(ConfigError, match=r"\[20, 77\] tokens"):
        tokens_at_once(encoders)


def test_states_of_a_batch_are_in_the_order_of_its_texts(base: Path) -> None:
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
    with torch.no_grad():
        both, pooled = encode_texts([(TOKENIZER, model)], ["one", LONG], TextReading(chunks=2))
        last, _ = encode_texts([(TOKENIZER, model)], [LONG], TextReading(chunks=2))
    assert pooled is None
    np.testing.assert_allclose(both[1:], last, atol=1e-5)
