"""The dataset's record: it comes back as it was written, and its digest is of what training sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from components.dataset.encoding_record import read_encoding, write_encoding
from components.dataset.versions import (
    Dataset,
    EncodedGroup,
    Shard,
    is_held_out,
    make_dataset,
    newest_key,
    read_dataset,
    read_group,
    read_only_dataset,
    read_version,
    records_of,
    version_key,
    write_dataset,
    write_group,
)
from components.digests import sha256
from components.errors import DataError
from components.storage.base import Storage
from components.storage.open import open_storage

A = Shard("shards/16x16/aaaaaaaaaaaaaaaa", (16, 16), 5, 1000, "a" * 64, held_out=(1,), tombstones=(0, 3))
B = Shard("shards/16x16/bbbbbbbbbbbbbbbb", (16, 16), 3, 900, "b" * 64)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset("0123456789abcdef", {"version": 1, "buckets": [[16, 16]]}, [B, A], rejected=2)


def test_dataset_is_sorted_and_counted(dataset: Dataset) -> None:
    assert dataset.shards == (A, B)
    assert (dataset.images, dataset.held_out, dataset.rejected) == (6, 1, 2)


def test_train_leaves_out_what_is_held_out_or_gone() -> None:
    assert A.train == (2, 4)
    assert B.train == (0, 1, 2)


def test_repeats_come_back_and_change_the_digest(storage: Storage, dataset: Dataset) -> None:
    shards = (replace(A, repeats="01110"), replace(B, repeats="1"))
    repeated = replace(dataset, shards=shards, repeats=("1", "5/2"))
    assert A.train_repeats == ""
    assert [shard.train_repeats for shard in shards] == ["10", "111"]
    assert Shard("shards/16x16/c", (16, 16), 2, 9, "c" * 64, repeats="01").train_repeats == "01"
    assert (dataset.epoch_samples, repeated.epoch_samples, repeated.train_samples) == (5, 11, 5)
    write_dataset(storage, repeated)
    assert read_dataset(storage) == repeated
    others = (dataset, replace(repeated, repeats=("1", "2")), replace(repeated, shards=(shards[0], B)))
    assert len({repeated.digest, *(other.digest for other in others)}) == 4


def test_dataset_comes_back_as_it_was_written(storage: Storage, dataset: Dataset) -> None:
    assert read_dataset(storage) is None
    write_dataset(storage, dataset)
    assert read_dataset(storage) == dataset
    before = storage.read("dataset.json")
    write_dataset(storage, dataset)
    assert storage.read("dataset.json") == before


@pytest.mark.parametrize(
    "change",
    [{"sha256": "c" * 64}, {"held_out": ()}, {"tombstones": (0,)}, {"name": "shards/16x16/cccccccccccccccc"}],
    ids=lambda change: next(iter(change)),
)
def test_digest_covers_what_training_sees(dataset: Dataset, change: dict[str, object]) -> None:
    changed = replace(dataset, shards=(replace(A, **change), B))  # type: ignore[arg-type]
    assert changed.digest != dataset.digest


def test_digest_does_not_cover_what_training_does_not_see(dataset: Dataset) -> None:
    assert replace(dataset, rejected=99).digest == dataset.digest
    assert replace(dataset, encoding_key="f" * 16).digest != dataset.digest


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"format": 1}', b'{"format": 2}'])
def test_damaged_record_is_rejected(storage: Storage, data: bytes) -> None:
    storage.write("dataset.json", data)
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_dataset(storage)


def test_record_that_was_tampered_with_is_rejected(storage: Storage, dataset: Dataset) -> None:
    write_dataset(storage, dataset)
    storage.write("dataset.json", storage.read("dataset.json").replace(b"a" * 64, b"d" * 64))
    with pytest.raises(DataError, match="checksum"):
        read_dataset(storage)
    values = storage.read("dataset.json").replace(b"a" * 64, b"d" * 64)
    storage.write_json("dataset.json", json.loads(values))  # whoever wrote it vouches for it
    with pytest.raises(DataError, match="digest"):
        read_dataset(storage)


def test_about_the_wanted_share_is_held_out() -> None:
    names = [sha256(str(i).encode()) for i in range(4000)]
    assert sum(is_held_out(name, 0.2) for name in names) / 4000 == pytest.approx(0.2, abs=0.02)
    assert not any(is_held_out(name, 0.0) for name in names)


def test_what_is_held_out_stays_so_when_the_share_grows() -> None:
    names = [sha256(str(i).encode()) for i in range(1000)]
    few = {name for name in names if is_held_out(name, 0.1)}
    assert few < {name for name in names if is_held_out(name, 0.3)}


def test_edges_of_the_held_out_share() -> None:
    assert is_held_out("0" * 64, 1e-9)
    assert is_held_out("7fff" + "0" * 60, 0.5)
    assert not is_held_out("8" + "0" * 63, 0.5)
    assert not is_held_out("f" * 64, 0.999)


def test_group_and_encoding_come_back(storage: Storage) -> None:
    assert read_group(storage, "000") is None
    write_group(storage, "000", [A.name, B.name])
    assert read_group(storage, "000") == EncodedGroup((A.name, B.name))
    with pytest.raises(DataError, match="latents"):
        read_encoding(storage)
    write_encoding(storage, {"version": 1})
    assert read_encoding(storage) == {"version": 1}


def test_damaged_group_is_rejected(storage: Storage) -> None:
    storage.write("groups/000.json", b"{}")
    with pytest.raises(DataError, match=r"groups/000\.json"):
        read_group(storage, "000")


def test_group_of_an_older_format_is_rejected(storage: Storage) -> None:
    storage.write_json("groups/000.json", {"format": 1, "shards": [], "variants": 1, "refused": []})
    with pytest.raises(DataError, match=r"groups/000\.json.*format 1, expected 2"):
        read_group(storage, "000")


def test_main_bucket_is_the_one_with_the_most_live_samples() -> None:
    wide, tall = Shard("shards/8x16/a", (8, 16), 9, 1, "0" * 64, (), (0, 1, 2)), Shard("b", (16, 8), 7, 1, "0" * 64)
    assert make_dataset("key", {}, [wide, tall], 0).main_bucket == (16, 8)
    assert make_dataset("key", {}, [wide, wide, tall], 0).main_bucket == (8, 16)


def test_every_version_stays_under_its_digest(storage: Storage, dataset: Dataset) -> None:
    write_dataset(storage, dataset)
    later = replace(dataset, shards=(A,))
    write_dataset(storage, later)
    assert read_dataset(storage) == later
    assert read_version(storage, dataset.digest) == dataset
    assert read_version(storage, later.digest) == later
    storage.delete_tree("versions")
    assert read_version(storage, later.digest) == later, "the newest is also dataset.json"
    with pytest.raises(DataError, match=f"no version {dataset.digest[:12]}"):
        read_version(storage, dataset.digest)


def test_a_version_under_another_ones_digest_is_rejected(storage: Storage, dataset: Dataset) -> None:
    write_dataset(storage, dataset)
    storage.write(version_key("0" * 64), storage.read("dataset.json"))
    with pytest.raises(DataError, match=rf"versions/{'0' * 64}\.json\b"):
        read_version(storage, "0" * 64)


@pytest.mark.parametrize("damage", [b'{"format": 1, "shards": 1e999}', b"[" * 100_000, b'{"format": 1}'])
def test_a_damaged_version_is_rejected(storage: Storage, damage: bytes) -> None:
    storage.write(version_key("0" * 64), damage)
    with pytest.raises(DataError, match="versions/0000"):
        read_version(storage, "0" * 64)


def test_a_version_is_the_newest_only_once_it_stands_under_its_digest(
    storage: Storage, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(key: str, _data: bytes) -> None:
        raise OSError(28, f"no space left for {key}")

    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(OSError, match=version_key(dataset.digest)):
        write_dataset(storage, dataset)


def test_the_only_dataset_is_asked_for_by_its_digest_once_there_are_two(storage: Storage, dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"no dataset at .*run the latents and index steps first"):
        read_only_dataset(storage)
    one = replace(dataset, caption_set="source/one")
    write_dataset(storage, one)
    assert read_only_dataset(storage) == one
    write_dataset(storage, replace(dataset, caption_set="source/two", shards=(A,)))
    with pytest.raises(
        DataError, match=r"2 caption sets \(.* of source/one, .* of source/two\); name one by its digest"
    ):
        read_only_dataset(storage)


def test_records_are_beside_the_shards_only_in_workdirs_of_before_caption_sets(storage: Storage) -> None:
    assert records_of(storage, "").url == storage.url
    assert records_of(storage, "source/one").url == f"{storage.url}/sets/source/one"
    assert newest_key("source/one") == "sets/source/one/dataset.json"
