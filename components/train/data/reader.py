"""From positions in the run to tensors: what each rank reads, and every random number its samples are trained with.

Each optimizer step takes one global batch of the order, and of it this rank's share. Everything random about a sample,
its noise, timestep, autoencoder sample and caption dropout, is a function of (seed, epoch, position). Threads read
and draw a few steps ahead, off the training's critical path; how many there are changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.dataset.format import TIME_IDS_COUNT, Added
from components.dataset.versions import Dataset
from components.rng import Stream, fill_normals, uniforms
from components.storage.base import Storage
from components.train.config import TrainConfig
from components.train.data.buffers import Buffers
from components.train.data.order import Places
from components.train.data.samples import Samples


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass on one rank.

    Attributes:
        latents: Scaled latents without noise, ``[B, C, H/f, W/f]``.
        noise: Standard normal, like ``latents``.
        timesteps: ``[B]``, int64, in [0, number of timesteps).
        text: Text embeddings, ``[B, L, D]``; that of the empty prompt if the caption was dropped. The reader gives
            them in fp16, as they are stored.
        weights: ``[B]``: 1, or 0 for a row that only keeps this rank in step with the others, or whose shard is bad
            and skipped.
        keys: Each row's key in its shard, the SHA-256 of its image and, if not 0, the sample's number; empty for a row
            of weight 0.
        pooled: Pooled text embeddings, ``[B, P]``; None unless the model is SDXL's.
        time_ids: Original size, crop corner and target size, ``[B, 6]``; None unless the model is SDXL's.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    weights: Tensor
    keys: tuple[str, ...] = ()
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> MicroBatch:
        """Return a copy on a device; all but the timesteps, the weights and the time ids in ``dtype``."""

        def move(tensor: Tensor) -> Tensor:
            # Pinned memory is copied without waiting, and converted there: half the bytes travel.
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            latents=move(self.latents).to(dtype),
            noise=move(self.noise).to(dtype),
            timesteps=move(self.timesteps),
            text=move(self.text).to(dtype),
            weights=move(self.weights),
            pooled=None if self.pooled is None else move(self.pooled).to(dtype),
            time_ids=None
            if self.time_ids is None
            else move(self.time_ids).float(),  # bf16 cannot distinguish 1024 from 1021
        )

    def rows(self) -> Iterator[MicroBatch]:
        """Yield each row of weight 1 as a micro-batch of its own."""
        for row in range(len(self.weights)):
            if self.weights[row]:
                here = slice(row, row + 1)
                yield MicroBatch(
                    latents=self.latents[here],
                    noise=self.noise[here],
                    timesteps=self.timesteps[here],
                    text=self.text[here],
                    weights=self.weights[here],
                    keys=self.keys[here],
                    pooled=None if self.pooled is None else self.pooled[here],
                    time_ids=None if self.time_ids is None else self.time_ids[here],
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
        rank: This process's rank.
        world: The number of ranks.
    """

    def __init__(
        self, dataset: Dataset, storage: Storage, drawing: Drawing, config: TrainConfig, rank: int, world: int
    ) -> None:
        self._samples = Samples(dataset, storage, config, drawing.seed, rank, world)
        self._drawing = drawing
        self._config = config
        self._buffers = Buffers(pinned=torch.cuda.is_available())

    @property
    def samples(self) -> int:
        """The number of samples of an epoch."""
        return self._samples.order.samples

    @property
    def bad_shards(self) -> dict[str, str]:
        """The names of the shards that this rank has skipped so far, and why."""
        return self._samples.bad_shards

    def steps(self, first: int, last: int) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of optimizer steps ``first`` to ``last - 1``, read ahead by threads."""
        with ThreadPoolExecutor(self._config.data.workers, thread_name_prefix="reader") as threads:
            numbers = iter(range(first, last))
            ahead: deque[Future[list[MicroBatch]]] = deque(
                threads.submit(self.read, step) for step in islice(numbers, self._config.data.prefetch)
            )
            try:
                while ahead:
                    ready = ahead.popleft().result()
                    ahead.extend(threads.submit(self.read, step) for step in islice(numbers, 1))
                    yield ready
            finally:
                for future in ahead:
                    future.cancel()

    def read(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of one optimizer step, counted from 0.

        Raises:
            DataError: If a shard is corrupt or missing and may not be skipped.
            StorageError: If a shard cannot be reached.
        """
        return [self._micro_batch(share.places, share.counts) for share in self._samples.share(step)]

    def close(self) -> None:
        """Close the shards and end the threads; no step may be read meanwhile or afterwards."""
        self._samples.close()

    def _micro_batch(self, places: Places, counts: bool) -> MicroBatch:
        rows = len(places.positions)
        channels, height, width = self._samples.moments_shape(places)
        moments = self._buffers.empty((rows, channels, height, width), torch.float16)
        text = self._buffers.empty((rows, *self._samples.empty.shape), torch.float16)
        added = self._added(rows)
        result = self._samples.copy(places, moments.numpy(), text.numpy(), added)

        seed, epochs, positions = self._drawing.seed, places.epochs, places.positions
        dropped = uniforms(seed, epochs, positions, Stream.CAPTION_DROPOUT) < self._drawing.caption_dropout
        text.numpy()[dropped] = self._samples.empty
        if added is not None:
            added.pooled[dropped] = self._samples.empty_pooled
        timesteps = uniforms(seed, epochs, positions, Stream.TIMESTEP) * self._drawing.timesteps
        latents = self._normals(places, Stream.LATENT, (channels // 2, height, width))
        sample_posterior(moments, latents, self._drawing.scaling_factor)
        return MicroBatch(
            latents=latents,
            noise=self._normals(places, Stream.NOISE, (channels // 2, height, width)),
            timesteps=torch.from_numpy(timesteps.astype(np.int64)),
            text=text,
            weights=torch.from_numpy((result.present & counts).astype(np.float32)),
            keys=tuple(result.keys) if counts else ("",) * rows,
            pooled=None if added is None else torch.from_numpy(added.pooled),
            time_ids=None if added is None else torch.from_numpy(added.time_ids),
        )

    def _added(self, rows: int) -> Added | None:
        """Return memory for the additional inputs of SDXL."""
        empty = self._samples.empty_pooled
        if empty is None:
            return None
        pooled = self._buffers.empty((rows, *empty.shape), torch.float16)
        return Added(pooled.numpy(), self._buffers.empty((rows, TIME_IDS_COUNT), torch.int32).numpy())

    def _normals(self, places: Places, stream: Stream, shape: tuple[int, ...]) -> Tensor:
        drawn = self._buffers.empty((len(places.positions), *shape), torch.float32)
        rows: NDArray[np.float32] = drawn.numpy().reshape(len(drawn), -1)
        fill_normals(rows, self._drawing.seed, places.epochs.tolist(), places.positions.tolist(), stream)
        return drawn


def sample_posterior(moments: Tensor, normals: Tensor, scaling_factor: float) -> None:
    """Turn normals into scaled latents, in place: the autoencoder's posterior is sampled anew each time.

    Kingma & Welling, arXiv:1312.6114, eq. 10; one row at a time, which stays in the processor's cache.

    Args:
        moments: fp16 ``[B, 2C, h, w]``: mean, then log-variance.
        normals: float32 ``[B, C, h, w]``.
        scaling_factor: What the latents are multiplied with.
    """
    for row, latent in zip(moments, normals, strict=True):
        mean, log_variance = row.float().chunk(2)
        latent.mul_(log_variance.mul_(0.5).exp_()).add_(mean).mul_(scaling_factor)
