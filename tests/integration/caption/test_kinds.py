"""Captioners of further kinds, made here and untaught: each is loaded by its own classes and asked as it wants."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from components.caption.config import CaptionConfig
from components.caption.models.captioner import Captioner
from components.caption.models.loading import without_videos
from components.image.records import Caption
from components.progress import Progress
from tests.stores.memory import MemoryStorage

WORDS = ["a", "red", "blue", "square", "this", "is"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
TEXT = {"num_key_value_heads": 1, "head_dim": 16, **SIZES, **TOKENS}
SMALL = {"height": 32, "width": 32}
TEMPLATE = (
    "{% for part in messages[0].content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} this is :{% endif %}"
)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a few words, whose special tokens come first and are attributes of it."""
    words = ["<unk>", "<pad>", "<s>", "</s>", *special.values(), *WORDS, ":"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=special, **ends)


def paligemma() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    vision = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32}
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", "vocab_size": len(words), **TEXT},
        vision_config={**vision, "vision_use_head": False, **SIZES},
        projection_dim=32,
        image_token_id=words.image_token_id,
    )
    images = SiglipImageProcessorPil(size=SMALL)
    images.image_seq_length = 4
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, words)


def gemma3() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    config = Gemma3Config(
        text_config={"vocab_size": len(words), **TEXT},
        vision_config={"image_size": 32, "patch_size": 8, "vision_use_head": False, **SIZES},
        mm_tokens_per_image=4,
        image_token_id=words.image_token_id,
    )
    template = TEMPLATE.replace("IMAGE", "<start_of_image>")
    processor = Gemma3Processor(Gemma3ImageProcessorPil(size=SMALL), words, chat_template=template, image_seq_length=4)
    return Gemma3ForConditionalGeneration(config), processor


def qwen3() -> tuple[Any, Any]:
    special = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    special |= {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    words = tokenizer(**{f"{name}_token": token for name, token in special.items()})
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "mrope_interleaved": True}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLConfig(
        text_config={"vocab_size": len(words), "rope_parameters": rope, **TEXT},
        vision_config={**vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 16, "patch_size": 14},
        **{f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in special.items()},
    )
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_videos(Qwen3VLProcessor)(images, words, None, chat_template=template)
    return Qwen3VLForConditionalGeneration(config), processor


def blip2() -> tuple[Any, Any]:
    words = tokenizer(image="<image>")
    opt = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 1}
    config = Blip2Config(
        vision_config={"image_size": 32, "patch_size": 16, **SIZES},
        qformer_config={"vocab_size": 30, "encoder_hidden_size": 32, **SIZES},
        text_config={
            **opt, "vocab_size": len(words), "num_attention_heads": 2, "max_position_embeddings": 64, **TOKENS
        },
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = Blip2Processor(BlipImageProcessorPil(size=SMALL), words, num_query_tokens=4)
    return Blip2ForConditionalGeneration(config), processor


def saved(make: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """Save a random model that can say nothing but words, so that there is something to read."""
    torch.manual_seed(0)
    model, processor = make()
    allowed = processor.tokenizer.convert_tokens_to_ids(WORDS)
    model.generation_config.suppress_tokens = sorted(set(range(len(processor.tokenizer))) - set(allowed))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def answers_of(folder: Path, prompt: str = "") -> list[list[str]]:
    """Return the words that a model says of two images of different shape, together and one by one."""
    images = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 60), "blue")]
    settings = {"model": str(folder), "device": "cpu", "max_new_tokens": 5, "prompt": prompt}
    captioner = Captioner(CaptionConfig.parse(settings), MemoryStorage("kinds"), Progress(io.StringIO()))
    together = captioner.write(images)
    assert together == [captioner.write([image])[0] for image in images]
    captions = [caption for one in together for caption in (one if isinstance(one, list) else [])]
    assert all(isinstance(caption, Caption) for caption in captions)
    return [caption.text.split() for caption in captions]


# PaliGemma's processor makes arrays of tensors in a way that NumPy will give up.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("make", [paligemma, gemma3, qwen3])
def test_what_was_asked_is_no_part_of_the_answer(make: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    folder = saved(make, tmp_path / "model")
    for prompt in ("", "is this a square :"):
        answers = answers_of(folder, prompt)
        assert [len(words) for words in answers] == [5, 5]
        assert all(set(words) <= set(WORDS) for words in answers)


def test_blip2_goes_on_with_the_beginning_of_a_caption(tmp_path: Path) -> None:
    answers = answers_of(saved(blip2, tmp_path / "model"), "this is a red")
    assert [words[:4] for words in answers] == [["this", "is", "a", "red"]] * 2
