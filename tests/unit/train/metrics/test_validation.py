"""Validation is the same wherever and whenever it is done: which samples, which noise, which timesteps, which mean."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from components.dataset.format import Sample, pack
from components.dataset.versions import Dataset, Shard, make_dataset
from components.digests import sha256
from components.errors import DataError
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, MicroBatch
from components.train.metrics.validation import (
    HeldOutSample,
    Validation,
    choose,
    make_batch,
    share,
    stratified_timesteps,
)
from tests.stores.memory import MemoryStorage

DRAWING = Drawing(seed=3, timesteps=1000, scaling_factor=0.5, caption_dropout=1.0)
SIZES = (9, 5, 12, 7)


def sample(number: int, side: int) -> Sample:
    rng = np.random.default_rng(number)
    key = sha256(b"%d" % number)
    moments = rng.standard_normal((8, side, side)).astype(np.float16)
    text = rng.standard_normal((3, 5)).astype(np.float16)
    return Sample(key, moments, text, {"sha256": key, "caption_digest": key})


def write_dataset(storage: Storage, sizes: tuple[int, ...] = SIZES) -> Dataset:
    """Write shards of two shapes; each third sample is held out."""
    shards, first = [], 0
    for number, size in enumerate(sizes):
        side = 4 if number % 2 else 2
        tar, index = pack([sample(i, side) for i in range(first, first + size)])
        name = f"shards/{side}x{side}/{number:016x}"
        storage.write(f"{name}.tar", tar)
        storage.write(f"{name}.idx", index)
        shards.append(Shard(name, (side, side), size, len(tar), sha256(tar), held_out=tuple(range(0, size, 3))))
        first += size
    return make_dataset("key", {}, shards, rejected=0)


@pytest.fixture(scope="module")
def storage() -> Storage:
    return open_storage("memory://validation")


@pytest.fixture(scope="module")
def dataset(storage: Storage) -> Dataset:
    return write_dataset(storage)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    meeting = tmp_path_factory.mktemp("meeting") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def losses_of(batch: MicroBatch) -> Tensor:
    """Return numbers that depend on all that a sample is validated with."""
    parts = (batch.latents, batch.noise, batch.text, batch.timesteps.float()[:, None] / 1000)
    return torch.stack([part.flatten(1).square().mean(1) for part in parts]).sum(0)


def measured(dataset: Dataset, storage: Storage, **settings: Any) -> float:
    config = TrainConfig.parse({"steps": 1, **settings})
    return Validation(dataset, storage, DRAWING, config, 0, 1).loss(losses_of, torch.device("cpu"))


def test_only_held_out_samples_are_chosen_each_once_and_no_more_than_asked(dataset: Dataset) -> None:
    everything = choose(dataset, 100)
    assert len({(one.shard, one.number) for one in everything}) == len(everything) == dataset.held_out
    assert all(one.number in dataset.shards[one.shard].held_out for one in everything)
    some = choose(dataset, 5)
    assert [one[:3] for one in some] == [one[:3] for one in everything[:5]]
    assert sorted(one.stratum for one in some) == list(range(5))


def test_few_shards_are_read(dataset: Dataset) -> None:
    fewest = len(dataset.shards[choose(dataset, 1)[0].shard].held_out)
    assert len({one.shard for one in choose(dataset, fewest)}) == 1


def test_new_images_leave_the_random_numbers_of_the_old_ones_alone(dataset: Dataset) -> None:
    new = Shard("shards/2x2/00000000000000ff", (2, 2), 9, 1, "ab" * 32, held_out=(4,))
    grown = make_dataset("key", {}, [*dataset.shards, new], rejected=0)
    before, after = (
        {(data.shards[one.shard].name, one.number): one.position for one in choose(data, 100)}
        for data in (dataset, grown)
    )
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1


def test_the_loss_is_a_function_of_the_seed_and_the_samples(dataset: Dataset, storage: Storage, alone: None) -> None:
    first = measured(dataset, storage)
    assert measured(dataset, storage) == first
    assert measured(dataset, storage, micro_batch=3) == pytest.approx(first, rel=1e-6)
    assert measured(dataset, storage, validation={"seed": 1}) != first
    assert measured(dataset, storage, validation={"samples": 4}) != first


def test_the_loss_is_the_mean_over_the_samples(dataset: Dataset, storage: Storage, alone: None) -> None:
    chosen, each = choose(dataset, 100), []
    for one in chosen:
        shard = dataset.shards[one.shard]
        first = sum(SIZES[: int(shard.name[-1])])
        read = sample(first + one.number, shard.bucket[0])
        each.append(float(losses_of(make_batch([read], [one], len(chosen), 0, DRAWING))))
    assert measured(dataset, storage) == pytest.approx(sum(each) / len(each), rel=1e-6)


def run_rank(rank: int, meeting: str, folder: str) -> None:
    """Measure as one of two ranks, and note the loss."""
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    storage = open_storage(folder)
    if rank == 0:
        write_dataset(storage)
    torch.distributed.barrier()
    data = write_dataset(MemoryStorage("own"))  # the same
    loss = Validation(data, storage, DRAWING, TrainConfig(steps=1, micro_batch=3), rank, 2).loss
    storage.write_json(f"loss-{rank}.json", loss(losses_of, torch.device("cpu")))
    torch.distributed.destroy_process_group()


def test_all_ranks_together_measure_what_one_alone_does(
    dataset: Dataset, storage: Storage, alone: None, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (f"file://{tmp_path}/meeting", str(tmp_path))
    ranks = [context.Process(target=run_rank, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    losses = [open_storage(str(tmp_path)).read_json(f"loss-{rank}.json") for rank in range(2)]
    assert losses == [measured(dataset, storage, micro_batch=3)] * 2


def test_measuring_twice_gives_the_same_bits(dataset: Dataset, storage: Storage, alone: None) -> None:
    validation = Validation(dataset, storage, DRAWING, TrainConfig(steps=1), 0, 1)
    device = torch.device("cpu")
    assert validation.loss(losses_of, device) == validation.loss(losses_of, device)
    assert validation.samples == dataset.held_out


def test_neither_the_run_s_seed_nor_its_caption_dropout_enters(dataset: Dataset, storage: Storage, alone: None) -> None:
    other = replace(DRAWING, seed=99, caption_dropout=0.0)
    config = TrainConfig(steps=1)
    loss = Validation(dataset, storage, other, config, 0, 1).loss(losses_of, torch.device("cpu"))
    assert loss == measured(dataset, storage)


def test_a_batch_is_drawn_as_training_draws(storage: Storage) -> None:
    one = HeldOutSample(shard=0, number=0, position=2**63 - 1, stratum=1)
    batch = make_batch([sample(0, 2)], [one], 4, seed=0, drawing=DRAWING)
    assert batch.latents.shape == batch.noise.shape == (1, 4, 2, 2)
    assert batch.weights.tolist() == [1.0]
    assert 250 <= int(batch.timesteps) < 500
    assert torch.equal(batch.text[0], torch.from_numpy(sample(0, 2).text))
    again = make_batch([sample(0, 2), sample(1, 2)], [one, one._replace(position=5, stratum=0)], 4, 0, DRAWING)
    assert torch.equal(again.noise[0], batch.noise[0]), "its neighbours do not matter"
    assert not torch.equal(again.noise[1], batch.noise[0])


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 2000))
def test_each_stratum_of_the_schedule_is_met(strata: int, timesteps: int) -> None:
    for within in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        drawn = stratified_timesteps(np.arange(strata), strata, np.full(strata, within), timesteps)
        assert 0 <= drawn.min() <= drawn.max() < timesteps
        most = -(-strata // timesteps) + 1
        assert max(Counter(drawn.tolist()).values()) <= most, "no timestep is met much more often than others"


@settings(deadline=None)
@given(limit=st.integers(1, 40), micro_batch=st.integers(1, 6), world=st.integers(1, 9))
def test_ranks_share_the_work_and_run_equally_often(dataset: Dataset, limit: int, micro_batch: int, world: int) -> None:
    chosen = choose(dataset, limit)
    ranks = [list(share(dataset, chosen, micro_batch, rank, world)) for rank in range(world)]
    done = sorted(chain.from_iterable(chunk.indices for rank in ranks for chunk in rank if chunk.counts))
    assert done == list(range(len(chosen)))
    assert len({len(rank) for rank in ranks}) == 1
    for chunk in chain.from_iterable(ranks):
        assert 1 <= len(chunk.indices) <= micro_batch
        assert len({dataset.shards[chosen[index].shard].bucket for index in chunk.indices}) == 1


@settings(deadline=None)
@given(limit=st.integers(1, 40), micro_batch=st.integers(1, 6), world=st.integers(1, 9))
def test_forward_passes_take_the_same_samples_at_any_world_size(
    dataset: Dataset, limit: int, micro_batch: int, world: int
) -> None:
    chosen = choose(dataset, limit)

    def passes(world: int) -> set[tuple[int, ...]]:
        ranks = (share(dataset, chosen, micro_batch, rank, world) for rank in range(world))
        return {tuple(chunk.indices) for rank in ranks for chunk in rank if chunk.counts}

    assert passes(world) == passes(1)


def test_a_damaged_shard_is_an_error_that_names_it_and_may_be_mended(alone: None) -> None:
    remote = open_storage("memory://validation-damaged")
    data = write_dataset(remote)
    name = data.shards[choose(data, 1)[0].shard].name
    tar = remote.read(f"{name}.tar")
    remote.write(f"{name}.tar", tar[:-1])
    validation = Validation(data, remote, DRAWING, TrainConfig(steps=1), 0, 1)
    with pytest.raises(DataError, match=name):
        validation.loss(losses_of, torch.device("cpu"))
    remote.write(f"{name}.tar", tar)
    assert validation.loss(losses_of, torch.device("cpu")) == measured(data, remote)


def test_of_a_remote_shard_only_the_samples_are_read(alone: None) -> None:
    class Counting(MemoryStorage):
        read_bytes = 0

        def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            data = super().read(key, start, length)
            Counting.read_bytes += len(data) if key.endswith(".tar") else 0
            return data

    remote = Counting("validation-remote", "")
    data = write_dataset(remote, sizes=(200,))
    Counting.read_bytes = 0
    assert measured(data, remote, validation={"samples": 2}) > 0
    assert Counting.read_bytes < data.shards[0].bytes / 20
