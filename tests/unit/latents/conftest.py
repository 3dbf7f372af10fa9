"""A pile of images, a tiny model, and the steps that turn them into a dataset."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.autoencoder.scratch import build_scratch
from components.dataset.format import Sample
from components.dataset.reader import ShardReader
from components.dataset.versions import Dataset, read_dataset
from components.digests import sha256
from components.image.records import (
    Caption,
    CaptionRecord,
    Manifest,
    ingest_rejections_key,
    write_captions,
    write_manifest,
    write_rejections,
)
from components.index.build import index
from components.index.config import IndexConfig
from components.latents.config import LatentsConfig
from components.latents.encoding_key import encoding_key
from components.latents.group import encode
from components.model.architecture import Architecture
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage

SOURCE = "0123456789abcdef"
SET = f"{SOURCE}/mine"
TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
)
SMALL: dict[str, Any] = {
    "resolution": 16,
    "batch_size": 3,
    "shard_samples": 8,
    "decode": {"threads": 2, "workers": 0},
}
SMALL |= {"device": "cpu"}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, ["a red square", "a blue square"], seed=1).save_pretrained(folder)
    return folder


def png(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


class Pile:
    """Images in a folder, ingested and captioned by hand, and the steps that follow."""

    def __init__(self, root: Path, base: Path, **settings: Any) -> None:
        self.source = root / "images"
        self.source.mkdir(parents=True)
        self.root = root / "work"
        self.workdir: Storage = open_storage(str(self.root))
        self.base = base
        self.configure(**settings)
        self.key = encoding_key(base, self.config)
        self.images: dict[str, CaptionRecord] = {}
        self.group = "000"
        self.caption_set = SET

    @property
    def dataset(self) -> Storage:
        return self.workdir.child(f"datasets/{self.key}")

    @property
    def captions(self) -> Storage:
        return self.workdir.child(f"captions/{SET}")

    @property
    def records(self) -> Storage:
        return self.dataset.child(f"sets/{SET}")

    def add(self, *numbers: int, size: tuple[int, int] = (24, 16)) -> None:
        for number in numbers:
            self.put(f"{number}.png", png(number, size), f"image {number}", size)

    def put(self, name: str, data: bytes, caption: str = "an image", size: tuple[int, int] = (24, 16)) -> None:
        """Add any file as an accepted image."""
        (self.source / name).write_bytes(data)
        captions = (Caption(caption, "sidecar:a.txt"),)
        self.images[name] = CaptionRecord(sha256(data), name, len(data), captions, "v", *size, license="CC0-1.0")

    def recaption(self, number: int, *captions: str) -> None:
        written = tuple(Caption(caption, "sidecar:a.txt") for caption in captions)
        self.images[f"{number}.png"] = replace(self.images[f"{number}.png"], captions=written)

    def configure(self, **settings: Any) -> None:
        """Change settings; the encoding stays the one that it was."""
        self.config = LatentsConfig.parse({**SMALL, **settings})

    def remove(self, number: int) -> None:
        (self.source / f"{number}.png").unlink()
        del self.images[f"{number}.png"]

    def caption(self) -> None:
        write_manifest(self.workdir, SOURCE, Manifest(str(self.source), len(self.images), 0, (self.group,), "d"))
        write_rejections(self.workdir, ingest_rejections_key(SOURCE), [])
        write_captions(self.captions, self.group, self.images.values(), [])

    def encode(self) -> dict[str, Any]:
        self.caption()
        return self.encode_in(self.workdir)

    def encode_in(self, workdir: Storage) -> dict[str, Any]:
        return encode(self.config, self.group, SOURCE, SET, self.key, str(self.base), workdir, Progress(io.StringIO()))

    def index(self, held_out: float = 0.0) -> Dataset:
        quiet = Progress(io.StringIO())
        index(IndexConfig(held_out=held_out), SOURCE, [self.group], SET, self.key, self.workdir, quiet)
        dataset = read_dataset(self.dataset, SET)
        assert dataset is not None
        return dataset

    def run(self) -> tuple[dict[str, Any], Dataset]:
        return self.encode(), self.index()

    def samples(self) -> Iterator[Sample]:
        for shard in self.index().shards:
            reader = ShardReader(self.dataset, shard.name, shard.sha256)
            yield from (reader.sample(i) for i in shard.train)

    def files(self) -> dict[str, bytes]:
        return {entry.key: self.dataset.read(entry.key) for entry in self.dataset.list()}


@pytest.fixture
def make_pile(tmp_path: Path, base: Path) -> Callable[..., Pile]:
    """Makes piles with settings of their own: ``make_pile(name, base, **settings)``."""

    def make(name: str = "pile", model: Path = base, **settings: Any) -> Pile:
        return Pile(tmp_path / name, model, **settings)

    return make


@pytest.fixture
def pile(make_pile: Callable[..., Pile]) -> Pile:
    pile = make_pile()
    pile.add(*range(20))
    return pile
