"""The index step a second time, killed, and twice at once: readers see the old version or the new one, each whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from components.dataset.encoding_record import write_encoding
from components.dataset.format import Sample, index_key, pack, sample_id, tar_key
from components.dataset.versions import Dataset, read_dataset, read_version, write_dataset, write_group
from components.digests import sha256
from components.image.records import (
    Caption,
    CaptionRecord,
    Manifest,
    Rejection,
    clean_rejections_key,
    latents_rejections_key,
    write_captions,
    write_manifest,
    write_rejections,
)
from components.index.build import index
from components.index.config import IndexConfig
from components.progress import Progress
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage
from tests.stores.mortal import contents

KEY, SOURCE = "fedcba9876543210", "0123456789abcdef"
SET = f"{SOURCE}/mine"


class Killed(Exception):
    pass


class Bench:
    """A workdir with two groups of one shard each."""

    def __init__(self, url: str) -> None:
        self.workdir = open_storage(url)
        self.dataset = self.workdir.child(f"datasets/{KEY}")
        self.records = self.dataset.child(f"sets/{SET}")
        self.captions = self.workdir.child(f"captions/{SET}")
        write_encoding(self.dataset, {"version": 1})
        write_rejections(self.workdir, f"ingest/{SOURCE}/rejected.jsonl", [])
        write_manifest(self.workdir, SOURCE, Manifest("photos", 0, 0, (), ""))
        self.put("000", range(10))
        self.put("001", range(10, 20))

    def put(self, group: str, numbers: Sequence[int], captioned: Sequence[int] | None = None) -> None:
        """Encode a group, and let only some of its images be there."""
        samples, name = [], f"shards/16x16/{numbers[0]:08x}{len(numbers):08x}"
        for number in numbers:
            image, array = sha256(b"%d" % number), np.zeros((2, 1, 1), np.float16)
            samples.append(Sample(image, array, array[0], {"caption_digest": sample_id(image, "x").caption}))
        tar, idx = pack(samples)
        self.dataset.write(tar_key(name), tar)
        self.dataset.write(index_key(name), idx)
        images = [sha256(b"%d" % number) for number in (numbers if captioned is None else captioned)]
        records = [CaptionRecord(image, "a.png", 1, (Caption("x", "none"),), "v", 8, 8) for image in images]
        write_captions(self.captions, group, records, [])
        write_group(self.records, group, [name])

    def index(self, held_out: float = 0.2, groups: Sequence[str] = ("000", "001")) -> Dataset:
        index(IndexConfig(held_out=held_out), SOURCE, groups, SET, KEY, self.workdir, Progress())
        return self.committed()

    def committed(self) -> Dataset:
        dataset = read_dataset(self.dataset, SET)
        assert dataset is not None
        return dataset


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(f"memory://{tmp_path.name}")


@pytest.fixture
def before_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Let something happen before each object is written."""
    write = MemoryStorage.write

    def arrange(happen: Callable[[str], None]) -> None:
        def spoiled(storage: MemoryStorage, key: str, data: bytes) -> None:
            happen(key)
            write(storage, key, data)

        monkeypatch.setattr(MemoryStorage, "write", spoiled)

    return arrange


def test_where_nothing_changed_no_index_of_a_shard_is_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read, keys = MemoryStorage.read, []

    def noted(storage: MemoryStorage, key: str, start: int = 0, length: int | None = None) -> bytes:
        keys.append(key)
        return read(storage, key, start, length)

    monkeypatch.setattr(MemoryStorage, "read", noted)
    first = bench.index()
    assert any(key.endswith(".idx") for key in keys)
    keys.clear()
    assert bench.index() == first
    assert set(keys) == {f"sets/{SET}/dataset.json", "index.json"}


CHANGES: dict[str, Callable[[Bench], object]] = {
    "an image is gone": lambda bench: bench.put("001", range(10, 20), captioned=range(10, 19)),
    "an image is new": lambda bench: bench.put("002", [99]),
    "clean left an image out": lambda bench: write_rejections(
        bench.captions, clean_rejections_key("000"), [Rejection("a.png", "clean", "near", "", sha256(b"3"))]
    ),
    "latents rejected an image": lambda bench: write_rejections(
        bench.records, latents_rejections_key("000"), [Rejection("a.png", "latents", "overflow", "", sha256(b"3"))]
    ),
    "the dataset is gone": lambda bench: bench.records.delete("dataset.json"),
    "the dataset is of another time": lambda bench: bench.index(held_out=0.5),
    "the note is damaged": lambda bench: bench.records.write("index.json", b'{"inputs": 1}'),
    "ingest left something out": lambda bench: write_rejections(
        bench.workdir, f"ingest/{SOURCE}/rejected.jsonl", [Rejection("a.png", "ingest", "empty-file", "")]
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changed_it_comes_out_as_in_a_workdir_without_a_past(bench: Bench, tmp_path: Path, what: str) -> None:
    bench.index()
    CHANGES[what](bench)
    names = (entry.key.removeprefix("groups/") for entry in bench.records.list("groups"))
    groups = sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
    again = bench.index(groups=groups)
    bench.records.delete("index.json")
    assert bench.index(groups=groups) == again
    images = {"an image is gone": 19, "an image is new": 21, "clean left an image out": 19}
    assert again.images == {**images, "latents rejected an image": 19}.get(what, 20)


def test_another_share_held_out_and_another_dataset_in_its_place_are_no_news_to_miss(bench: Bench) -> None:
    first = bench.index(held_out=0.2)
    other = bench.index(held_out=0.5)
    assert other.held_out > first.held_out
    assert bench.index(held_out=0.2) == first
    write_dataset(bench.dataset, other)  # as a copy from elsewhere would be
    assert bench.index(held_out=0.2) == first


def test_a_shard_that_was_cut_off_is_not_taken_for_unchanged(bench: Bench) -> None:
    first = bench.index()
    name = tar_key(first.shards[0].name)
    bench.put("000", range(30, 35))  # nobody needs the old one's images any more
    bench.dataset.write(name, bench.dataset.read(name)[:100])
    assert name not in {tar_key(shard.name) for shard in bench.index().shards}


def test_killed_before_any_write_it_leaves_the_old_version_or_the_new(
    bench: Bench, before_writing: Callable[[Callable[[str], None]], None]
) -> None:
    old = bench.index()
    bench.put("001", range(10, 20), captioned=range(10, 15))
    left, versions = 0, []

    def die(_: str) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    before_writing(die)
    for patience in range(10):
        left = patience
        try:
            new = bench.index()
        except Killed:
            versions.append(bench.committed())
            for version in bench.dataset.list("versions"):
                read_version(bench.dataset, version.key.split("/")[1].removesuffix(".json"))
        else:
            break
    assert old != new
    assert [version == new for version in versions] == [False, False, False, True], "committed by the last but one"
    assert all(version in (old, new) for version in versions)


def test_what_a_killed_one_wrote_does_not_pass_for_what_was_before(
    bench: Bench, before_writing: Callable[[Callable[[str], None]], None]
) -> None:
    reject = partial(write_rejections, bench.workdir, f"ingest/{SOURCE}/rejected.jsonl")
    left = 0

    def die(_: str) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    bench.index()
    expected = contents(bench.dataset)
    for patience in range(6):
        before_writing(lambda _: None)
        reject([Rejection("b.png", "ingest", "empty", "0 bytes")])
        before_writing(die)
        left = patience
        with suppress(Killed):
            bench.index()
        before_writing(lambda _: None)
        reject([])
        bench.index()
        assert contents(bench.dataset) == expected, f"killed before write {patience}"


def test_two_at_once_commit_one_whole_version(
    bench: Bench, before_writing: Callable[[Callable[[str], None]], None]
) -> None:
    old = bench.index()
    bench.put("001", range(10, 20), captioned=range(10, 15))
    keys: list[str] = []
    before_writing(keys.append)
    new = bench.index()
    assert len(keys) == 4

    for moment in range(len(keys)):
        bench.records.delete("index.json")
        bench.put("001", range(10, 20))
        assert bench.index() == old
        bench.put("001", range(10, 20), captioned=range(10, 15))
        countdown = moment

        def interfere(_: str) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown == -1:  # the other process runs from its beginning to its end
                assert bench.index() == new

        before_writing(interfere)
        assert bench.index() == new
        before_writing(lambda _: None)
        assert bench.index() == new


def test_in_a_local_folder_nothing_depends_on_when_it_was_written(tmp_path: Path) -> None:
    benches = [Bench(str(tmp_path / name)) for name in ("one", "two")]
    for bench in benches:
        bench.index()
        bench.index()
    files = [{entry.key: bench.dataset.read(entry.key) for entry in bench.dataset.list()} for bench in benches]
    assert files[0] == files[1]
