"""Validation loss: the loss on held-out samples with the same noise and timesteps each time it is measured.

Which samples are used, and everything random about them, is a function of (seed, held-out samples); a sample is
identified by its number and its shard's name, a digest of the shard's content. So the losses of two steps, or of two
runs on the same data, differ only by what was learned. Captions are never dropped, and timesteps are stratified: with
*n* samples, each *n*-th of the noise schedule occurs once.

The weights measured are the moving average's: those that are evaluated, drawn from and published. The training loss is
that of the weights in training, so the two curves are of different weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.dataset.format import Sample
from components.dataset.reader import ShardReader
from components.dataset.tars import open_ranged, open_whole
from components.dataset.versions import Dataset
from components.digests import digest
from components.errors import DataError, StorageError
from components.rng import Stream, normals, uniforms
from components.storage.base import Storage
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, MicroBatch, sample_posterior
from components.train.processes.collectives import first_problem

# Training counts epochs from 0, so no number that it draws is drawn here again.
_EPOCH = 2**63 - 1


class HeldOutSample(NamedTuple):
    """A sample to measure on.

    Attributes:
        shard: Its shard's number in the dataset.
        number: Its number in that shard.
        position: The key of its random numbers, 0 ≤ position < 2⁶³.
        stratum: Which part of the noise schedule its timestep is from; each of 0 … n-1 occurs once.
    """

    shard: int
    number: int
    position: int
    stratum: int


def choose(dataset: Dataset, limit: int) -> list[HeldOutSample]:
    """Return at most ``limit`` held-out samples, those of a shard together, so that few shards are read.

    Shards are used in the order of a digest of their names, as good as random, until there are enough samples.
    """
    keyed: list[tuple[int, int, int]] = []
    for shard in sorted(range(len(dataset.shards)), key=lambda number: digest(["shard", dataset.shards[number].name])):
        held_out = [(_position(dataset, shard, number), number) for number in dataset.shards[shard].held_out]
        keyed += [(shard, number, position) for position, number in sorted(held_out)]
        if len(keyed) >= limit:
            break
    chosen = keyed[:limit]
    strata = {position: stratum for stratum, position in enumerate(sorted(position for _, _, position in chosen))}
    return [HeldOutSample(shard, number, position, strata[position]) for shard, number, position in chosen]


def _position(dataset: Dataset, shard: int, number: int) -> int:
    return int(digest(["held out", dataset.shards[shard].name, number])[:16], 16) >> 1


class Validation:
    """Measures the loss on held-out samples; their latents stay in memory once they are read.

    Args:
        dataset: The committed dataset.
        storage: Its folder.
        drawing: The noise schedule's length and the latents' scale; its seed is not used.
        config: The training's settings.
        rank: This process's rank.
        world: The number of ranks.
    """

    def __init__(
        self, dataset: Dataset, storage: Storage, drawing: Drawing, config: TrainConfig, rank: int, world: int
    ) -> None:
        self._dataset = dataset
        self._storage = storage
        self._drawing = drawing
        self._config = config
        self._chosen = choose(dataset, config.validation.samples)
        self._chunks = list(share(dataset, self._chosen, config.micro_batch, rank, world))
        self._batches: list[MicroBatch] | None = None

    @property
    def samples(self) -> int:
        """The number of samples to measure on."""
        return len(self._chosen)

    def loss(self, losses: Callable[[MicroBatch], Tensor], device: torch.device) -> float:
        """Return the mean loss; every rank calls it and gets the same number.

        A forward pass takes the same samples at any number of ranks, and the losses are added up in one order, so the
        number of ranks changes nothing.

        Args:
            losses: Maps a micro-batch to each sample's loss, ``[B]``; every rank calls it equally often.
            device: Where ranks exchange tensors.

        Raises:
            DataError: On every rank, if any cannot read its held-out samples.
        """
        if self._batches is None:
            self._batches = self._read_all()
        all_losses = torch.zeros(len(self._chosen), dtype=torch.float64, device=device)
        for chunk, batch in zip(self._chunks, self._batches, strict=True):
            chunk_losses = losses(batch).to(all_losses)
            if chunk.counts:
                all_losses[chunk.indices] = chunk_losses
        torch.distributed.all_reduce(all_losses)
        return float(np.mean(all_losses.cpu().numpy()))

    def _read_all(self) -> list[MicroBatch]:
        batches: list[MicroBatch] = []
        own_problem = None
        try:
            batches = [self._read([self._chosen[index] for index in chunk.indices]) for chunk in self._chunks]
        except (DataError, StorageError) as error:
            own_problem = str(error)
        if (problem := first_problem(own_problem)) is not None:
            raise DataError(f"held-out samples cannot be read: {problem}")
        return batches

    def _read(self, chosen: Sequence[HeldOutSample]) -> MicroBatch:
        # Of a remote shard only the samples' own bytes are read.
        open_tar = open_ranged if self._storage.local_path() is None else open_whole
        readers: dict[int, ShardReader] = {}
        for shard in dict.fromkeys(one.shard for one in chosen):
            entry = self._dataset.shards[shard]
            verify = self._config.data.verify_shards
            readers[shard] = ShardReader(self._storage, entry.name, entry.sha256, verify, open_tar)
        samples = [readers[one.shard].sample(one.number) for one in chosen]
        return make_batch(samples, chosen, len(self._chosen), self._config.validation.seed, self._drawing)


class Chunk(NamedTuple):
    """The samples of one forward pass, as indices of the chosen ones, and whether its losses count."""

    indices: list[int]
    counts: bool


def share(
    dataset: Dataset, chosen: Sequence[HeldOutSample], micro_batch: int, rank: int, world: int
) -> Iterator[Chunk]:
    """Yield a rank's forward passes: as many on each rank, as collectives demand, and of one shape each."""
    buckets: dict[tuple[int, int], list[int]] = {}
    for index, one in enumerate(chosen):
        buckets.setdefault(dataset.shards[one.shard].bucket, []).append(index)
    for bucket in sorted(buckets):
        indices = buckets[bucket]
        chunks = [indices[start : start + micro_batch] for start in range(0, len(indices), micro_batch)]
        turns = ceil(len(chunks) / world)
        for number in range(rank * turns, (rank + 1) * turns):
            # A rank with no chunk of its own runs one sample that does not count.
            yield Chunk(chunks[number], True) if number < len(chunks) else Chunk(chunks[-1][:1], False)


def make_batch(
    samples: Sequence[Sample], chosen: Sequence[HeldOutSample], strata: int, seed: int, drawing: Drawing
) -> MicroBatch:
    """Return held-out samples with their noise and timesteps.

    Args:
        samples: The samples, all of one shape.
        chosen: The entry of each of them.
        strata: Number of parts of the noise schedule.
        seed: Seed of all random numbers.
        drawing: The noise schedule's length and the latents' scale.
    """
    positions = [one.position for one in chosen]
    moments = torch.from_numpy(np.stack([sample.moments for sample in samples]))  # [B, 2C, h, w]
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    latents = torch.from_numpy(normals(seed, _EPOCH, positions, Stream.LATENT, shape))
    sample_posterior(moments, latents, drawing.scaling_factor)
    noise = normals(seed, _EPOCH, positions, Stream.NOISE, shape)
    within = uniforms(seed, _EPOCH, positions, Stream.TIMESTEP)
    timesteps = stratified_timesteps(np.array([one.stratum for one in chosen]), strata, within, drawing.timesteps)
    added = [sample.added for sample in samples if sample.added is not None]
    return MicroBatch(
        latents=latents,
        noise=torch.from_numpy(noise),
        timesteps=torch.from_numpy(timesteps),
        text=torch.from_numpy(np.stack([sample.text for sample in samples])),
        weights=torch.ones(len(samples)),
        keys=tuple(sample.key for sample in samples),
        pooled=torch.from_numpy(np.stack([one.pooled for one in added])) if added else None,
        time_ids=torch.from_numpy(np.stack([one.time_ids for one in added])) if added else None,
    )


def stratified_timesteps(
    stratum: NDArray[np.int64], strata: int, within: NDArray[np.float64], timesteps: int
) -> NDArray[np.int64]:
    """Return one timestep in [0, timesteps) per sample: ``within`` in [0, 1) says where in its stratum it lies."""
    drawn: NDArray[np.int64] = ((stratum + within) / strata * timesteps).astype(np.int64)
    return np.minimum(drawn, timesteps - 1)
