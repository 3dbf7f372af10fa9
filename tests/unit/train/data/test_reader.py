"""The reader: a sample has the same numbers on every rank; a damaged shard is reported, or its samples are skipped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, index_key, pack, tar_key
from components.dataset.reader import ShardReader
from components.dataset.versions import Dataset, Shard, make_dataset
from components.digests import sha256
from components.errors import DataError, StorageError
from components.rng import Stream, normals, uniforms
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.data.buffers import Buffers
from components.train.data.reader import Drawing, MicroBatch, Reader
from tests.stores.memory import MemoryStorage

SHAPES = {(16, 16): (8, 2, 2), (16, 24): (8, 2, 3)}
TEXT = (5, 6)
DRAWING = Drawing(seed=3, timesteps=1000, scaling_factor=0.5, caption_dropout=0.3)
# Bucket, samples, held out, tombstones.
PLAN: list[tuple[tuple[int, int], int, tuple[int, ...], tuple[int, ...]]] = [
    ((16, 16), 7, (0, 3), ()),
    ((16, 16), 5, (), (4,)),
    ((16, 16), 4, (0, 1), (2, 3)),  # nothing to train on
    ((16, 16), 9, (8,), (0, 1)),
    ((16, 24), 6, (5,), (2,)),
    ((16, 24), 3, (), ()),
]
EMPTY = np.full(TEXT, 7, dtype=np.float16)


def make_sample(bucket: tuple[int, int], shard: int, number: int) -> Sample:
    rng = np.random.default_rng([shard, number])
    key = sha256(b"%d-%d" % (shard, number))
    moments = rng.normal(size=SHAPES[bucket]).astype(np.float16)
    return Sample(key, moments, rng.normal(size=TEXT).astype(np.float16), {"caption_digest": key[:16]})


def fill(storage: Storage) -> Dataset:
    shards = []
    for shard, (bucket, count, held_out, tombstones) in enumerate(PLAN):
        tar, index = pack([make_sample(bucket, shard, number) for number in range(count)])
        name = f"shards/{bucket[0]}x{bucket[1]}/{shard:016x}"
        storage.write(tar_key(name), tar)
        storage.write(index_key(name), index)
        shards.append(Shard(name, bucket, count, len(tar), sha256(tar), held_out, tombstones))
    write_empty_prompt(storage, EmptyPrompt(EMPTY))
    return make_dataset("key", {}, shards, rejected=0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "dataset"))


@pytest.fixture
def dataset(storage: Storage) -> Dataset:
    return fill(storage)


def settings(global_batch: int = 7, micro_batch: int = 3, **data: Any) -> TrainConfig:
    return TrainConfig.parse({"global_batch": global_batch, "micro_batch": micro_batch, "data": {"window": 2, **data}})


Row = tuple[Any, ...]


def rows_of(batches: list[MicroBatch]) -> list[Row]:
    """Return what each row of weight 1 is trained with."""
    rows = [row for batch in batches for row in batch.rows()]
    of_rows = ([tensor.numpy().tobytes() for tensor in (row.latents, row.noise, row.text)] for row in rows)
    return [(row.keys[0], int(row.timesteps), *arrays) for row, arrays in zip(rows, of_rows, strict=True)]


def read(dataset: Dataset, storage: Storage, steps: int, world: int = 1, **values: Any) -> list[Row]:
    readers = [Reader(dataset, storage, DRAWING, settings(**values), rank, world) for rank in range(world)]
    rows = [row for step in range(steps) for reader in readers for row in rows_of(reader.read(step))]
    for reader in readers:
        reader.close()
    return rows


def test_every_training_sample_comes_once_per_epoch_and_no_other(dataset: Dataset, storage: Storage) -> None:
    expected = {
        make_sample(bucket, shard, number).key
        for shard, (bucket, count, held_out, tombstones) in enumerate(PLAN)
        for number in range(count)
        if number not in {*held_out, *tombstones}
    }
    reader = Reader(dataset, storage, DRAWING, settings(), 0, 1)
    assert reader.samples == len(expected) == 22
    rows = read(dataset, storage, steps=5 * 22)  # 35 epochs, of either bucket to within two batches
    counts = Counter(row[0] for row in rows)
    assert set(counts) == expected
    for bucket in SHAPES:
        keys = {
            make_sample(b, s, n).key for s, (b, count, _, _) in enumerate(PLAN) for n in range(count) if b == bucket
        }
        of_bucket = [counts[key] for key in keys & expected]
        assert max(of_bucket) - min(of_bucket) <= 1
        assert abs(sum(of_bucket) / len(of_bucket) - 35) <= 2 * 7 / len(of_bucket)


@pytest.mark.parametrize("world", [2, 3, 5, 9])
def test_any_world_size_trains_on_the_same_rows_in_the_same_order(
    dataset: Dataset, storage: Storage, world: int
) -> None:
    alone = read(dataset, storage, steps=12)
    assert len(alone) == 12 * 7
    assert read(dataset, storage, 12, world, micro_batch=2, workers=2, prefetch=1) == alone


def test_repeats_are_the_same_for_any_world_size_and_from_any_step(dataset: Dataset, storage: Storage) -> None:
    digits = ["".join(str((shard + number) % 3) for number in range(row[1])) for shard, row in enumerate(PLAN)]
    shards = tuple(replace(shard, repeats=text) for shard, text in zip(dataset.shards, digits, strict=True))
    repeated = replace(dataset, shards=shards, repeats=("1/2", "1", "3"))
    rates = {
        make_sample(bucket, shard, number).key: (Fraction(1, 2), 1, 3)[(shard + number) % 3]
        for shard, (bucket, count, held_out, tombstones) in enumerate(PLAN)
        for number in range(count)
        if number not in {*held_out, *tombstones}
    }
    assert repeated.epoch_samples == round(sum(rates.values())) != repeated.train_samples == len(rates)
    alone = read(repeated, storage, steps=40)
    assert read(repeated, storage, 12, world=3) == read(repeated, storage, 12, world=5) == alone[: 12 * 7]
    reader = Reader(repeated, storage, DRAWING, settings(), 0, 1)
    assert reader.samples == repeated.epoch_samples
    assert rows_of(reader.read(33)) == alone[33 * 7 : 34 * 7]
    counts, epochs = Counter(row[0] for row in alone), 40 * 7 / sum(rates.values())
    assert counts.keys() == rates.keys(), "held-out images and tombstones never come"
    assert all(abs(counts[key] - epochs * rate) < 1 + 2 * 7 * rate / 6 for key, rate in rates.items())


@pytest.mark.parametrize("world", [1, 3, 9])
def test_each_sample_of_a_global_batch_weighs_one(dataset: Dataset, storage: Storage, world: int) -> None:
    """Nine ranks have more micro-batches than there are samples: what fills them weighs nothing."""
    weights: list[float] = []
    for rank in range(world):
        reader = Reader(dataset, storage, DRAWING, settings(micro_batch=2), rank, world)
        weights += [weight for batch in reader.read(0) for weight in batch.weights.tolist()]
        reader.close()
    assert sorted(weights) == [0.0] * (len(weights) - 7) + [1.0] * 7


@pytest.mark.parametrize("remote_shards", ["cache", "range"])
def test_any_storage_gives_the_same_rows(
    dataset: Dataset, storage: Storage, tmp_path: Path, remote_shards: str
) -> None:
    memory = MemoryStorage(f"reader-{remote_shards}")
    fill(memory)
    cache = tmp_path / "cache"
    rows = read(dataset, memory, 8, remote_shards=remote_shards, cache=str(cache), cache_gib=1)
    assert rows == read(dataset, storage, 8)
    assert cache.exists() == (remote_shards == "cache")


def test_the_cache_of_remote_shards_keeps_to_the_size_in_gib(dataset: Dataset, tmp_path: Path) -> None:
    memory, cache = MemoryStorage("reader-small-cache"), tmp_path / "cache"
    fill(memory)
    most = 3 * max(shard.bytes for shard in dataset.shards)
    read(dataset, memory, 30, window=1, cache=str(cache), cache_gib=most / 2**30)
    kept = [path.stat().st_size for path in cache.iterdir() if path.suffix == ".tar"]
    assert 1 <= len(kept) < sum(bool(shard.train) for shard in dataset.shards)
    assert sum(kept) <= most


def test_a_shard_with_arrays_of_another_shape_is_named(dataset: Dataset, storage: Storage) -> None:
    name = dataset.shards[1].name
    longer = [replace(make_sample((16, 16), 1, number), text=np.zeros((9, 6), np.float16)) for number in range(5)]
    tar, index = pack(longer)
    storage.write(tar_key(name), tar)
    storage.write(index_key(name), index)
    shards = [replace(one, bytes=len(tar), sha256=sha256(tar)) if one.name == name else one for one in dataset.shards]
    with pytest.raises(DataError, match=rf"{name} has arrays of shapes .*\(9, 6\).*expected .*\(5, 6\).*run latents"):
        read(replace(dataset, shards=tuple(shards)), storage, steps=30)


def test_a_row_is_made_of_its_sample_and_its_position(dataset: Dataset, storage: Storage) -> None:
    reader = Reader(dataset, storage, DRAWING, settings(global_batch=22, micro_batch=22), 0, 1)
    dropped = 0
    for step in range(4):
        (batch,) = reader.read(step)
        places = reader._samples.order.batch(step, 22)
        for row, (epoch, position, shard, number) in enumerate(zip(*(p.tolist() for p in places), strict=True)):
            entry = dataset.shards[shard]
            sample = ShardReader(storage, entry.name).sample(entry.train[number])
            assert batch.keys[row] == sample.key
            mean, log_variance = np.split(sample.moments.astype(np.float64), 2)
            drawn = normals(3, epoch, [position], Stream.LATENT, mean.shape)[0]
            np.testing.assert_allclose(
                batch.latents[row], 0.5 * (mean + np.exp(log_variance / 2) * drawn), rtol=1e-5, atol=1e-6
            )
            np.testing.assert_array_equal(batch.noise[row], normals(3, epoch, [position], Stream.NOISE, mean.shape)[0])
            assert int(batch.timesteps[row]) == int(1000 * uniforms(3, epoch, [position], Stream.TIMESTEP)[0])
            drop = bool(uniforms(3, epoch, [position], Stream.CAPTION_DROPOUT)[0] < 0.3)
            np.testing.assert_array_equal(batch.text[row], EMPTY if drop else sample.text)
            dropped += drop
    assert 10 < dropped < 45, "three tenths of 88"


def test_steps_come_in_order_from_anywhere_with_any_number_of_threads(dataset: Dataset, storage: Storage) -> None:
    whole = [rows_of(batches) for batches in Reader(dataset, storage, DRAWING, settings(), 0, 1).steps(0, 12)]
    for workers, prefetch in [(1, 1), (3, 2), (4, 9)]:
        reader = Reader(dataset, storage, DRAWING, settings(workers=workers, prefetch=prefetch), 0, 1)
        assert [rows_of(batches) for batches in reader.steps(5, 12)] == whole[5:]
    begun = reader.steps(0, 10**9)
    assert rows_of(next(begun)) == whole[0]
    begun.close()  # type: ignore[attr-defined]


def test_rank_without_samples_runs_a_row_that_does_not_count(dataset: Dataset, storage: Storage) -> None:
    reader = Reader(dataset, storage, DRAWING, settings(global_batch=2, micro_batch=1), rank=0, world=3)
    (batch,) = reader.read(0)
    assert batch.weights.tolist() == [0.0]
    assert batch.keys == ("",)
    assert list(batch.rows()) == []
    assert batch.latents.shape[0] == 1


def test_micro_batch_goes_to_a_device_in_its_dtype(dataset: Dataset, storage: Storage) -> None:
    (batch, *_) = Reader(dataset, storage, DRAWING, settings(), 0, 1).read(0)
    assert batch.text.dtype == torch.float16, "as it is stored, so that half the bytes travel"
    moved = batch.to(torch.device("cpu"), torch.float32)
    assert {moved.latents.dtype, moved.noise.dtype, moved.text.dtype} == {torch.float32}
    assert (moved.timesteps.dtype, moved.weights.dtype) == (torch.int64, torch.float32)
    assert moved.keys == batch.keys


def test_batches_that_are_kept_keep_their_numbers(dataset: Dataset, storage: Storage) -> None:
    reader = Reader(dataset, storage, DRAWING, settings(), 0, 1)
    kept = list(reader.steps(0, 10))
    assert [rows_of(batches) for batches in kept] == [rows_of(reader.read(step)) for step in range(10)]


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    buffers = Buffers(pinned=False)
    first = buffers.empty((3, 4), torch.float16)
    address, part = first.data_ptr(), first[1:].numpy()
    del first
    assert buffers.empty((3, 4), torch.float16).data_ptr() != address, "a view of it is still held"
    held = buffers.empty((3, 4), torch.float16)
    del part
    assert address in {buffers.empty((6, 2), torch.float16).data_ptr(), held.data_ptr()}
    assert buffers.empty((0, 4), torch.float32).shape == (0, 4)


def damage(storage: Storage, shard: Shard, how: str) -> None:
    key = tar_key(shard.name)
    data = bytearray(storage.read(key))
    match how:
        case "flipped":
            data[700] ^= 1
            storage.write(key, bytes(data))
        case "cut":
            storage.write(key, bytes(data[:-512]))
        case "missing":
            storage.delete(key)
        case "index":
            storage.write(index_key(shard.name), b"{}")


DAMAGES = ["flipped", "cut", "missing", "index"]


@pytest.mark.parametrize("how", DAMAGES)
def test_bad_shard_ends_training_by_name(dataset: Dataset, storage: Storage, how: str) -> None:
    damage(storage, dataset.shards[3], how)
    with pytest.raises(DataError, match=dataset.shards[3].name):
        read(dataset, storage, 12)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("world", [1, 3])
def test_bad_shard_can_count_for_nothing_and_all_else_stays(
    dataset: Dataset, storage: Storage, how: str, world: int
) -> None:
    whole = read(dataset, storage, 12)
    bad = dataset.shards[3]
    lost = {make_sample(bad.bucket, 3, number).key for number in range(bad.samples)}
    damage(storage, bad, how)
    assert read(dataset, storage, 12, world, on_bad_shard="skip") == [row for row in whole if row[0] not in lost]

    readers = [Reader(dataset, storage, DRAWING, settings(on_bad_shard="skip"), rank, world) for rank in range(world)]
    batches = [batch for step in range(12) for reader in readers for batch in reader.read(step)]
    missing = [(batch, row) for batch in batches for row in range(len(batch.keys)) if batch.weights[row] == 0]
    assert len(missing) == sum(row[0] in lost for row in whole)
    assert all(batch.keys[row] == "" and np.isfinite(batch.latents[row].numpy()).all() for batch, row in missing)
    problems = {name: why for reader in readers for name, why in reader.bad_shards.items()}
    assert set(problems) == {bad.name}
    assert bad.name in problems[bad.name]


def test_bucket_without_a_shard_that_can_be_read_ends_training(dataset: Dataset, storage: Storage) -> None:
    for shard in dataset.shards[4:]:
        damage(storage, shard, "flipped")
    with pytest.raises(DataError, match=r"no shard .*16x24"):
        read(dataset, storage, 12, on_bad_shard="skip")


def test_digests_are_checked_once_and_only_if_asked(dataset: Dataset, storage: Storage) -> None:
    damage(storage, dataset.shards[3], "flipped")
    assert len(read(dataset, storage, 12, verify_shards=False)) == 12 * 7


def test_dataset_with_nothing_to_train_on_is_refused(dataset: Dataset, storage: Storage) -> None:
    none = make_dataset("key", {}, [dataset.shards[2]], rejected=0)
    with pytest.raises(DataError, match="no sample to train on"):
        Reader(none, storage, DRAWING, settings(), 0, 1)
    storage.delete("empty.npy")
    with pytest.raises(DataError, match="empty prompt"):
        Reader(dataset, storage, DRAWING, settings(), 0, 1)


class Flaky(MemoryStorage):
    """A storage that cannot be reached at times."""

    failing = False

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if self.failing:
            raise StorageError("the network is down")
        return super().read(key, start, length)


def test_place_that_cannot_be_reached_is_no_bad_shard(tmp_path: Path) -> None:
    storage = Flaky("flaky")
    dataset = fill(storage)
    reader = Reader(dataset, storage, DRAWING, settings(on_bad_shard="skip", cache=str(tmp_path)), 0, 1)
    storage.failing = True
    with pytest.raises(StorageError, match="the network is down"):
        reader.read(0)
    storage.failing = False
    assert len(rows_of(reader.read(0))) == 7, "it is read again"
    assert reader.bad_shards == {}
