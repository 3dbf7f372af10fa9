"""From positions in the run to tensors: what each rank reads, and every random number its samples are trained with.

Position *i* of the run is sample ``i mod N`` of epoch ``i div N``. The reader looks up where that sample lies, takes
it from its shard and draws its noise, timestep, autoencoder sample and caption dropout, all as functions of (seed,
epoch, position). A thread does so a few steps ahead, off the training's critical path.
"""

from __future__ import annotations

import io
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.dataset import Dataset
from components.rng import Stream, normals, uniforms
from components.shards import Sample, ShardReader
from components.storage import Storage
from components.train.batches import micro_batches
from components.train.config import TrainConfig
from components.train.order import Order


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of one rank is given.

    Attributes:
        latents: Scaled latents without noise, ``[B, C, H/f, W/f]``.
        noise: Standard normal, like ``latents``.
        timesteps: ``[B]``, int64, in [0, number of timesteps).
        text: Text embeddings, ``[B, L, D]``; that of the empty prompt where the caption was dropped.
        weights: ``[B]``: 1, or 0 for a row that only keeps this rank in step with the others.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    weights: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> MicroBatch:
        """Return a copy on a device; all but the timesteps and the weights in ``dtype``."""
        return replace(
            self,
            latents=self.latents.to(device, dtype),
            noise=self.noise.to(device, dtype),
            timesteps=self.timesteps.to(device),
            text=self.text.to(device, dtype),
            weights=self.weights.to(device),
        )


@dataclass(frozen=True)
class Drawing:
    """What the random numbers of a sample depend on besides its position.

    Attributes:
        seed: The run's seed.
        timesteps: The number of timesteps of the noise schedule.
        scaling_factor: What the autoencoder's latents are multiplied with.
        caption_dropout: The share of samples whose caption is dropped.
    """

    seed: int
    timesteps: int
    scaling_factor: float
    caption_dropout: float


class Reader:
    """Reads one rank's share of every global batch.

    Args:
        dataset: The committed dataset.
        storage: Its folder.
        drawing: What the random numbers depend on.
        config: The training's settings.
        rank: This process's place among the ranks.
        world: The number of ranks.
    """

    def __init__(
        self, dataset: Dataset, storage: Storage, drawing: Drawing, config: TrainConfig, rank: int, world: int
    ) -> None:
        self._shards = _OpenShards(dataset, storage, limit=2 * config.window)
        self._order = Order([len(train) for train in self._shards.train], config.window, drawing.seed)
        self._empty = np.load(io.BytesIO(storage.read("empty.npy")), allow_pickle=False)
        self._drawing = drawing
        self._config = config
        self._share = micro_batches(config.global_batch, world, rank, config.micro_batch)

    @property
    def samples(self) -> int:
        """The number of samples of an epoch."""
        return self._order.samples

    def steps(self, first: int, last: int) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of optimizer steps ``first`` to ``last - 1``, read ahead by a thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
            wanted = iter(range(first, last))
            ahead: deque[Future[list[MicroBatch]]] = deque(
                thread.submit(self.read, step) for step in islice(wanted, self._config.prefetch)
            )
            try:
                while ahead:
                    ready = ahead.popleft().result()
                    ahead.extend(thread.submit(self.read, step) for step in islice(wanted, 1))
                    yield ready
            finally:
                for future in ahead:
                    future.cancel()

    def read(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of one optimizer step, counted from 0."""
        first = step * self._config.global_batch
        return [self._micro_batch(first, part) for part in self._share]

    def _micro_batch(self, first: int, part: range) -> MicroBatch:
        # A rank without samples still runs one row, of weight 0: collectives need every rank.
        real = len(part) > 0
        indices = [first + place for place in part] if real else [first]
        pieces = [
            self._draw(epoch, [self._order.epoch_of(index)[1] for index in run])
            for epoch, run in groupby(indices, key=lambda index: self._order.epoch_of(index)[0])
        ]
        latents, noise, timesteps, text = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        weights = np.full(len(indices), float(real), dtype=np.float32)
        return MicroBatch(*(torch.from_numpy(array) for array in (latents, noise, timesteps, text, weights)))

    def _draw(self, epoch: int, positions: Sequence[int]) -> tuple[NDArray[np.generic], ...]:
        """Return latents, noise, timesteps and text of some samples of one epoch."""
        samples = [self._shards.sample(*place) for place in self._order.places(epoch, positions)]
        seed = self._drawing.seed
        mean, log_variance = np.split(np.stack([sample.moments for sample in samples]).astype(np.float32), 2, axis=1)
        shape = mean.shape[1:]
        # The autoencoder's posterior is sampled anew each time (Kingma & Welling, arXiv:1312.6114, eq. 10).
        latents = mean + np.exp(0.5 * log_variance) * normals(seed, epoch, positions, Stream.LATENT, shape)
        noise = normals(seed, epoch, positions, Stream.NOISE, shape)
        drawn = uniforms(seed, epoch, positions, Stream.TIMESTEP)
        timesteps = (drawn * self._drawing.timesteps).astype(np.int64)
        dropped = uniforms(seed, epoch, positions, Stream.CAPTION_DROPOUT) < self._drawing.caption_dropout
        text = np.stack(
            [self._empty if drop else sample.text for drop, sample in zip(dropped, samples, strict=True)]
        ).astype(np.float32)
        return latents * np.float32(self._drawing.scaling_factor), noise, timesteps, text


class _OpenShards:
    """The shards that are open now: at most ``limit``, the least recently used one closes first."""

    def __init__(self, dataset: Dataset, storage: Storage, limit: int) -> None:
        self.train = [shard.train for shard in dataset.shards]
        self._dataset = dataset
        self._storage = storage
        self._limit = limit
        self._open: OrderedDict[int, ShardReader] = OrderedDict()

    def sample(self, shard: int, number: int) -> Sample:
        """Return a training sample of a shard, counted among the shard's training samples."""
        if shard not in self._open:
            entry = self._dataset.shards[shard]
            self._open[shard] = ShardReader(self._storage, entry.name, entry.sha256)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard].sample(self.train[shard][number])
