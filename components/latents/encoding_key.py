"""The encoding: all that decides which numbers an image and its caption become, and the key made from it.

Two datasets with one key hold the same numbers for the same image and caption, so what one run has encoded, every other
run may use. So whatever changes the numbers must be in the key, and nothing else, or work would be done twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.dataset import format
from components.digests import digest_tree, short
from components.latents.buckets import make_buckets
from components.latents.config import LatentsConfig
from components.model.text_reading import text_chunks

# Raise this when the code in components/latents gives other numbers for the same images and captions.
VERSION = 2
_ENCODERS = ("vae", "text_encoder", "tokenizer")
_SDXL = ("text_encoder_2", "tokenizer_2")


def encoding(base: Path, config: LatentsConfig) -> dict[str, Any]:
    """Return all that decides the numbers: the encoders' files, the size, the framing, the precision.

    Args:
        base: A diffusers folder.
        config: Settings.
    """
    chunks = text_chunks(config.text_chunks, base)
    parts = [*_ENCODERS, *(part for part in _SDXL if (base / part).is_dir())]
    return {
        "version": VERSION,
        "shard_format": format.FORMAT,
        "models": {part: digest_tree(base, [part]) for part in parts},
        "buckets": [list(shape) for shape in make_buckets(config).shapes],
        "framing": f"{config.framing}, Lanczos",
        # Not their count: one more variant does not change the others.
        "variants": config.variants.model_dump(exclude={"count"}),
        "vae_dtype": config.vae_dtype,
        "text_dtype": config.text_dtype,
        "clip_skip": config.clip_skip,
        # The keys of before there were chunks are those of one chunk.
        **({"text_chunks": chunks} if chunks > 1 else {}),
        "stored_dtype": "fp16",
    }


def encoding_key(base: Path, config: LatentsConfig) -> str:
    """Return the name of an encoding, 16 hex digits."""
    return short(encoding(base, config))
