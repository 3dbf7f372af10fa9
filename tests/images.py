"""Small pictures, good ones and what people have for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOOD = ("good/first.png", "good/last.jpg")
NOBODY = 65534


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def image_bytes(seed: int, side: int = 16) -> bytes:
    return encoded(noise(seed, side, side))


def put(path: Path, data: bytes, words: bytes | None = b"some words") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if words is not None:
        path.with_suffix(".txt").write_bytes(words)
    return path


def folder(root: Path) -> Path:
    """A folder with two good images."""
    put(root / GOOD[0], encoded(noise(1)))
    put(root / GOOD[1], encoded(noise(2), "JPEG"))
    return root
