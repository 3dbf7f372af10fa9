"""The encoding: all that decides which numbers an image and its caption become, and the key made from it.

Two datasets with one key hold the same numbers for the same image and caption, so what one run encoded every other
may use. Whatever would change the numbers must be in here; whatever would not, must not, or work is done twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.dataset import format
from components.digests import digest_tree, short
from components.latents.buckets import make_buckets
from components.latents.config import LatentsConfig

# Counts up when the code below components/latents makes other numbers of the same images and captions.
VERSION = 2
_ENCODERS = ("vae", "text_encoder", "tokenizer")
_SDXL = ("text_encoder_2", "tokenizer_2")


def encoding(base: Path, config: LatentsConfig) -> dict[str, Any]:
    """Return what decides the numbers: the encoders' files, the size, the framing, the precision.

    Args:
        base: A diffusers folder.
        config: Settings.
    """
    parts = [*_ENCODERS, *(part for part in _SDXL if (base / part).is_dir())]
    return {
        "version": VERSION,
        "shard_format": format.FORMAT,
        "models": {part: digest_tree(base, [part]) for part in parts},
        "buckets": [list(shape) for shape in make_buckets(config).shapes],
        "framing": f"{config.framing}, Lanczos",
        # Not how many there are: one more leaves the others as they were.
        "variants": config.variants.model_dump(exclude={"count"}),
        "vae_dtype": config.vae_dtype,
        "text_dtype": config.text_dtype,
        "clip_skip": config.clip_skip,
        "stored_dtype": "fp16",
    }


def encoding_key(base: Path, config: LatentsConfig) -> str:
    """Return the name of an encoding, 16 hex digits."""
    return short(encoding(base, config))
