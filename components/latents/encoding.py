"""The encoding: all that decides which numbers an image and its caption become, and the key made from it.

Two datasets with one key hold the same numbers for the same image and caption, so what one run encoded every other
may use. Whatever would change the numbers must be in here; whatever would not, must not, or work is done twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components import shards
from components.digests import digest_tree, short
from components.latents.config import LatentsConfig

# Counts up when the code below components/latents makes other numbers of the same images and captions.
VERSION = 1
_ENCODERS = ("vae", "text_encoder", "tokenizer")


def encoding(base: Path, config: LatentsConfig) -> dict[str, Any]:
    """Return what decides the numbers: the encoders' files, the size, the framing, the precision.

    Args:
        base: A diffusers folder.
        config: Settings.
    """
    return {
        "version": VERSION,
        "shard_format": shards.FORMAT,
        "models": {part: digest_tree(base, [part]) for part in _ENCODERS},
        "buckets": [list(config.bucket)],
        "framing": "centre crop, Lanczos",
        "variants": ["plain"],
        "vae_dtype": config.vae_dtype,
        "text_dtype": config.text_dtype,
        "stored_dtype": "fp16",
    }


def encoding_key(base: Path, config: LatentsConfig) -> str:
    """Return the name of an encoding, 16 hex digits."""
    return short(encoding(base, config))
