"""A Stable Diffusion pipeline made from scratch: seeded weights, and a tokenizer that learns from captions.

The text encoder keeps its random weights: it gives each caption an embedding of its own, which is all that a
model of few words needs. The tokenizer is CLIP's (Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", 2021) with other merges: byte-pair encoding over bytes, so it can spell any caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from components.model.architecture import Architecture, TextArchitecture
from components.model.locations import encodable

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def build_scratch(architecture: Architecture, captions: Iterable[str], seed: int) -> StableDiffusionPipeline:
    """Return a pipeline with untrained weights; the same arguments give the same bytes.

    Args:
        architecture: Its sizes.
        captions: The captions that the tokenizer learns its words from; their order does not matter.
        seed: The seed of all weights.
    """
    tokenizer = build_tokenizer(captions, architecture.text)
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        return StableDiffusionPipeline(
            vae=_autoencoder(architecture),
            text_encoder=_text_encoder(architecture.text, tokenizer),
            tokenizer=tokenizer,
            unet=_unet(architecture),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    finally:
        torch.set_rng_state(before)


def build_tokenizer(captions: Iterable[str], architecture: TextArchitecture) -> Any:
    """Return a ``CLIPTokenizer`` with a vocabulary in CLIP's order: letters, letters at a word's end, merges.

    ``CLIPTokenizer.train_new_from_iterator`` would number the letters at a word's end in the order of a hash table,
    which differs from run to run. Naming all of them beforehand fixes their numbers, and with them the merges.
    """
    like = CLIPTokenizer().backend_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=architecture.vocabulary - 2,
        special_tokens=[*letters, *(letter + _WORD_END for letter in letters)],
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(sorted(map(encodable, captions)), trainer=trainer)
    learned = json.loads(learner.to_str())["model"]
    names = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = {name: number for number, name in enumerate([*names, _BEGIN, _END])}
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=architecture.max_tokens)


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule with v-prediction and trailing steps.

    v-prediction is of Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022; trailing
    steps are of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def _autoencoder(architecture: Architecture) -> AutoencoderKL:
    sizes = architecture.autoencoder
    stages = len(sizes.channels)
    return AutoencoderKL(
        block_out_channels=sizes.channels,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        layers_per_block=sizes.layers_per_block,
        norm_num_groups=sizes.norm_groups,
        latent_channels=sizes.latent_channels,
        mid_block_add_attention=sizes.mid_attention,
        sample_size=architecture.resolution,
    )


def _text_encoder(sizes: TextArchitecture, tokenizer: Any) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        projection_dim=sizes.hidden,
        intermediate_size=4 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _unet(architecture: Architecture) -> UNet2DConditionModel:
    sizes = architecture.unet
    down = tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in sizes.cross_attention)
    up = tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(sizes.cross_attention))
    return UNet2DConditionModel(
        sample_size=architecture.latent_side,
        in_channels=architecture.autoencoder.latent_channels,
        out_channels=architecture.autoencoder.latent_channels,
        block_out_channels=sizes.channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=sizes.layers_per_block,
        cross_attention_dim=architecture.text.hidden,
        # diffusers takes this as the number of heads (its issue 2011 explains why it keeps the name).
        attention_head_dim=sizes.attention_heads,
        norm_num_groups=sizes.norm_groups,
    )
