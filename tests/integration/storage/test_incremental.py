"""Images to latents, again and again: only what is new is done, wherever it lies and however its store behaves."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.dataset.format import SampleId, read_index, tar_key
from components.dataset.reader import ShardReader
from components.dataset.versions import Dataset, read_dataset
from components.digests import sha256
from components.image.decoding import ImageLimits
from components.image.records import read_manifest
from components.index.build import index
from components.index.config import IndexConfig
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.latents.config import LatentsConfig
from components.latents.encoding_key import encoding_key
from components.latents.group import encode
from components.model.architecture import Architecture
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from components.storage.s3 import S3Storage
from tests.stores.proxy import ERROR_500, SLOW_DOWN, FlakyProxy, cut_short, lose_the_answer, pass_on, reset

TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
)
SETTINGS = {"batch_size": 4, "shard_samples": 16, "device": "cpu"}
IMAGES = 40
SET = "pile/mine"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from components.autoencoder.scratch import build_scratch

    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, ["a red square", "a blue square"], seed=1).save_pretrained(folder)
    return folder


def png(number: int, brighter: int = 0) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 200, (24, 24, 3), dtype=np.uint8)
    pixels[0, 0, 0] += brighter
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


@dataclass
class Pile:
    """Images in one storage, and a workdir in another."""

    images: Storage
    workdir: Storage
    base: Path
    done: dict[str, int] = field(default_factory=dict)

    def add(self, number: int, brighter: int = 0) -> str:
        """Add an image or replace it; return its digest."""
        data = png(number, brighter)
        self.images.write(f"{number:03d}.png", data)
        self.images.write(f"{number:03d}.txt", b"square number %d" % number)
        return sha256(data)

    def run(self, resolution: int = 16) -> Dataset:
        """Run the steps from images to a dataset, and note how many images each of them did anything to."""
        progress = Progress(io.StringIO())
        taken = ingest(IngestConfig(source=self.images.url), self.workdir, progress)
        source_id = taken["source_id"]
        config = LatentsConfig.parse({**SETTINGS, "resolution": resolution})
        key, captioned, encoded = encoding_key(self.base, config), 0, 0
        groups = read_manifest(self.workdir, source_id).groups
        for group in groups:
            where: tuple[str, str, str] = (group, source_id, SET)
            captioned += caption(CaptionConfig(), ImageLimits(), *where, self.workdir, progress)["captioned"]
            encoded += encode(config, *where, key, str(self.base), self.workdir, progress)["encoded"]
        index(IndexConfig(held_out=0.1), source_id, groups, SET, key, self.workdir, progress)
        self.done = {"read": taken["read"], "captioned": captioned, "encoded": encoded}
        dataset = read_dataset(self.workdir.child(f"datasets/{key}"), SET)
        assert dataset is not None
        return dataset

    def trained(self, dataset: Dataset) -> set[SampleId]:
        """What training sees, the held-out images included."""
        storage = self.workdir.child(f"datasets/{dataset.encoding_key}")
        return {
            read_index(storage, shard.name).samples[i].id
            for shard in dataset.shards
            for i in (*shard.train, *shard.held_out)
        }


def did(count: int) -> dict[str, int]:
    return {"read": count, "captioned": count, "encoded": count}


@pytest.fixture
def pile(tmp_path: Path, base: Path) -> Pile:
    pile = Pile(open_storage(str(tmp_path / "images")), open_storage(str(tmp_path / "work")), base)
    for number in range(IMAGES):
        pile.add(number)
    return pile


def test_only_what_is_new_is_done(pile: Pile) -> None:
    first = pile.run()
    assert (first.images, pile.done) == (IMAGES, did(IMAGES))
    assert (pile.run(), pile.done) == (first, did(0))

    new = pile.add(IMAGES)
    second = pile.run()
    assert (second.images, pile.done) == (IMAGES + 1, did(1))
    assert {made.image for made in pile.trained(second) - pile.trained(first)} == {new}
    assert set(first.shards) <= set(second.shards), "old shards stay as they are"

    old, changed = sha256(png(7)), pile.add(7, brighter=1)
    third = pile.run()
    assert (third.images, pile.done) == (IMAGES + 1, did(1))
    images = {made.image for made in pile.trained(third)}
    assert changed in images
    assert old not in images, "the old sample is gone from training"


def test_what_vanished_is_a_tombstone_and_is_not_encoded_again_when_it_comes_back(pile: Pile) -> None:
    first = pile.run()
    gone = pile.images.read("003.png")
    pile.images.delete("003.png")
    without = pile.run()
    assert (without.images, pile.done["encoded"]) == (IMAGES - 1, 0)
    assert sum(len(shard.tombstones) for shard in without.shards) == 1
    assert sha256(gone) not in {made.image for made in pile.trained(without)}
    pile.images.write("003.png", gone)
    assert pile.run() == first
    assert pile.done["encoded"] == 0
    versions = pile.workdir.list(f"datasets/{first.encoding_key}/versions")
    assert {entry.key.split("/")[-1] for entry in versions} == {f"{first.digest}.json", f"{without.digest}.json"}


# webdataset leaves the tars open until its iterator is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_shards_open_in_plain_webdataset_with_safe_decoders_only(
    pile: Pile, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = pile.run()
    storage = pile.workdir.child(f"datasets/{dataset.encoding_key}")
    monkeypatch.setattr(webdataset.utils, "enforce_security", True)  # WebDataset's own switch against pickles
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("something was unpickled"))
    paths = [str(storage.local_path(tar_key(shard.name))) for shard in dataset.shards]
    samples = {one["__key__"]: one for one in webdataset.WebDataset(paths, shardshuffle=False).decode()}
    assert len(samples) == IMAGES
    for shard in dataset.shards:
        reader = ShardReader(storage, shard.name, shard.sha256)
        for sample in map(reader.sample, range(len(reader))):
            np.testing.assert_array_equal(samples[sample.key]["moments.npy"], sample.moments)
            np.testing.assert_array_equal(samples[sample.key]["text.npy"], sample.text)
            assert samples[sample.key]["json"] == sample.meta


def test_another_resolution_is_another_dataset_beside_the_first(pile: Pile) -> None:
    first = pile.run()
    before = set(pile.workdir.list(f"datasets/{first.encoding_key}/shards"))
    other = pile.run(resolution=24)
    assert other.encoding_key != first.encoding_key
    assert pile.done["encoded"] == IMAGES
    assert set(pile.workdir.list(f"datasets/{first.encoding_key}/shards")) == before
    assert (pile.run(), pile.done["encoded"]) == (first, 0)


def test_a_store_that_fails_now_and_then_gives_the_same_bytes(
    pile: Pile, s3: S3Storage, flaky: FlakyProxy, base: Path
) -> None:
    for number in range(8, IMAGES):
        pile.images.delete(f"{number:03d}.png")
    expected = pile.run()
    folder = f"datasets/{expected.encoding_key}"
    remote = Pile(open_storage(f"{s3.url}/images"), open_storage(f"{s3.url}/work"), base)
    for entry in list(pile.images.list())[: 2 * expected.images]:
        s3.write(f"images/{entry.key}", pile.images.read(entry.key))
    faults = cycle([ERROR_500, reset, SLOW_DOWN, cut_short, lose_the_answer])
    flaky.fault_of = lambda _, number: next(faults) if number % 5 == 0 else pass_on
    assert remote.run() == expected
    assert (remote.run(), remote.done) == (expected, did(0))
    assert len(flaky.requests) > 100, "some of each kind were spoiled"

    def files(workdir: Storage) -> dict[str, bytes]:
        wanted = ("shards/", "versions/", "sets/", "empty.npy")
        keys = [entry.key for entry in workdir.list(folder) if entry.key[len(folder) + 1 :].startswith(wanted)]
        return {key: workdir.read(key) for key in keys if not key.endswith("/index.json")}  # only stores have it

    flaky.fault_of = lambda *_: pass_on
    assert files(remote.workdir) == files(pile.workdir)
