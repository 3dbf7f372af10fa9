"""From positions in the run to moments and texts: which samples of a global batch a rank reads, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dataset.empty_prompt import read_empty_prompt
from components.dataset.format import Added
from components.dataset.tars import OpenTar, open_ranged, open_whole
from components.dataset.versions import Dataset
from components.errors import DataError
from components.storage.base import Storage
from components.storage.files import temporary_cache
from components.train.config import TrainConfig
from components.train.data.batches import expected_shards, micro_batches
from components.train.data.open_shards import OpenShards, untrained_samples
from components.train.data.order import Order, Places, Repeats, Window
from components.train.data.shard_cache import ShardCache

# Open shards cost file descriptors, of which a process often has 1,024, and some 100 KB each for a thousand samples.
_OPEN_AT_LEAST, _OPEN_AT_MOST = 64, 512
_REQUESTS = 16  # at a time, if samples are read one by one
_CACHE = "darkroom-shards"

Half = NDArray[np.float16]


class Share(NamedTuple):
    """One micro-batch of one rank.

    Attributes:
        places: Where its samples are stored.
        counts: Whether they count. A rank without samples runs one that does not: collectives need every rank.
    """

    places: Places
    counts: bool


class CopyResult(NamedTuple):
    """Which rows of a batch were copied.

    Attributes:
        keys: SHA-256 of each row's image; empty if its shard is skipped.
        present: Whether each row was copied; if its shard is skipped it was not, and the row holds zeros.
    """

    keys: list[str]
    present: NDArray[np.bool_]


class Samples:
    """One rank's share of the samples of every global batch.

    Args:
        dataset: The committed dataset.
        storage: Its folder.
        config: The training's settings.
        seed: The run's seed.
        rank: This process's rank.
        world: The number of ranks.

    Attributes:
        order: The order of all samples.
        empty: The text embedding of the empty prompt, ``[L, D]``, fp16.
        empty_pooled: Its pooled embedding, ``[P]``, fp16; None unless the samples are of SDXL.

    Raises:
        DataError: If the dataset has no sample to train on, or no embedding of the empty prompt.
    """

    def __init__(
        self, dataset: Dataset, storage: Storage, config: TrainConfig, seed: int, rank: int, world: int
    ) -> None:
        self.empty, self.empty_pooled = read_empty_prompt(storage)
        self.order = _order(dataset, config.data.window, seed)
        self._buckets = [shard.bucket for shard in dataset.shards]
        self._global_batch = config.global_batch
        self._share = micro_batches(config.global_batch, world, rank, config.micro_batch)
        self._rank, self._world = rank, world
        self._ahead: Window | None = None
        self._shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        local = storage.local_path() is not None
        self._open = OpenShards(
            dataset,
            storage,
            _open_tar(config, local),
            limit=min(max(2 * config.data.window * len(set(self._buckets)), _OPEN_AT_LEAST), _OPEN_AT_MOST),
            verify=config.data.verify_shards,
            skip_bad=config.data.on_bad_shard == "skip",
            threads=config.data.shard_threads,
        )
        self._requests: ThreadPoolExecutor | None = None
        if config.data.remote_shards == "range" and not local:
            self._requests = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="requests")

    @property
    def bad_shards(self) -> dict[str, str]:
        """The names of the shards that are skipped so far, and why."""
        return dict(self._open.bad)

    def share(self, step: int) -> list[Share]:
        """Return this rank's micro-batches of an optimizer step, from 0, and begin to open shards."""
        batch = self.order.batch(step, self._global_batch)
        share = [
            Share(batch.take(slice(part.start, part.stop) if part else slice(1)), counts=bool(part))
            for part in self._share
        ]
        here, after = self.order.windows(step, self._global_batch)
        if after is not self._ahead:
            self._ahead = after
            self._open.prefetch(dict.fromkeys(shard for part in share for shard in part.places.shards.tolist()))
            windows = (window.members.tolist() for window in (here, after))
            self._open.prefetch(chain.from_iterable(expected_shards(one, self._rank, self._world) for one in windows))
        return share

    def moments_shape(self, places: Places) -> tuple[int, ...]:
        """Return the shape of each moments, ``[2C, h, w]``; all of a batch are of one bucket.

        Raises:
            DataError: If no shard of the bucket can be read.
        """
        bucket = self._buckets[int(places.shards[0])]
        if bucket not in self._shapes:
            here = dict.fromkeys(places.shards.tolist())
            rest = (shard for shard, other in enumerate(self._buckets) if other == bucket and shard not in here)
            opened = (self._open.get(shard) for source in (here, rest) for shard in source)
            shape = next((shard.reader.moments_shape for shard in opened if shard is not None), None)
            if shape is None:
                raise DataError(f"no shard of bucket {bucket[0]}x{bucket[1]} can be read: {self._open.bad}")
            self._shapes[bucket] = shape
        return self._shapes[bucket]

    def copy(self, places: Places, moments: Half, text: Half, added: Added | None = None) -> CopyResult:
        """Copy samples into the rows of two arrays, or four.

        Args:
            places: Where the samples are stored, in the order of their shards.
            moments: ``[len(places), 2C, h, w]``, contiguous.
            text: ``[len(places), L, D]``, contiguous.
            added: ``[len(places), P]`` and ``[len(places), 6]``, if the samples are for SDXL.

        Raises:
            DataError: If a shard is corrupt or missing and may not be skipped.
            StorageError: If a shard cannot be reached.
        """
        moments_rows, text_rows = moments.reshape(len(moments), -1), text.reshape(len(text), -1)
        shapes = moments.shape[1:], text.shape[1:], None if added is None else added.pooled.shape[1:]

        def copy_shard(rows: slice) -> list[str]:
            shard, numbers = int(places.shards[rows.start]), places.samples[rows]
            added_rows = None if added is None else Added(added.pooled[rows], added.time_ids[rows])
            keys = self._copy(shard, numbers, shapes, moments_rows[rows], text_rows[rows], added_rows)
            if keys is None:
                for array in (moments_rows, text_rows, *(added or ())):
                    array[rows] = 0
            return keys or [""] * len(numbers)

        groups = self._each(copy_shard, _stretches(places.shards))
        keys = [key for group in groups for key in group]
        return CopyResult(keys, np.array(keys, dtype=bool))

    def _copy(
        self,
        shard: int,
        numbers: NDArray[np.int64],
        shapes: tuple[Any, Any, Any],
        moments: Half,
        text: Half,
        added: Added | None,
    ) -> list[str] | None:
        """Copy samples of one shard and return their keys; None if the shard is skipped."""
        opened = self._open.get(shard)
        if opened is None:
            return None
        reader = opened.reader
        try:
            if (actual := (reader.moments_shape, reader.text_shape, reader.pooled_shape)) != shapes:
                raise DataError(
                    f"shard {reader.name} has arrays of shapes {actual}, expected {shapes}; run latents again"
                )
            local = opened.local(numbers)
            reader.copy(local, moments, text, added)
        except DataError as error:
            self._open.skip(reader.name, error)
            return None
        return [reader.keys[number] for number in local]

    def _each(self, copy: Callable[[slice], list[str]], parts: Iterable[slice]) -> Iterator[list[str]]:
        return self._requests.map(copy, parts) if self._requests is not None else map(copy, parts)

    def close(self) -> None:
        """Close the shards and end the threads."""
        self._open.close()
        if self._requests is not None:
            self._requests.shutdown(cancel_futures=True)


def _order(dataset: Dataset, window: int, seed: int) -> Order:
    sizes = np.array([shard.samples - len(untrained_samples(shard)) for shard in dataset.shards], dtype=np.uint32)
    if not sizes.sum():
        raise DataError("the dataset has no sample to train on; add images, or lower index.held_out")
    # Shards are sorted by name, which begins with the bucket, so a bucket's shards are together.
    buckets = [len(list(shards)) for _, shards in groupby(dataset.shards, key=lambda shard: shard.bucket)]
    return Order(sizes, window, seed, buckets, _repeats(dataset))


def _repeats(dataset: Dataset) -> Repeats | None:
    """Return how often each sample stands in an epoch; None if each does once."""
    if not dataset.repeats:
        return None
    shards = dataset.shards

    def classes(shard: int) -> NDArray[np.int64]:
        return np.array([int(digit, 36) for digit in shards[shard].train_repeats], dtype=np.int64)

    counts = np.zeros((len(dataset.repeats), len(shards)), dtype=np.uint32)
    for number, shard in enumerate(shards):
        for digit, count in Counter(shard.train_repeats).items():
            counts[int(digit, 36), number] = count
    return Repeats([Fraction(repeats) for repeats in dataset.repeats], counts, classes)


def _open_tar(config: TrainConfig, local: bool) -> OpenTar:
    if local:
        return open_whole
    if config.data.remote_shards == "range":
        return open_ranged
    folder = Path(config.data.cache) if config.data.cache else temporary_cache(_CACHE)
    return ShardCache(folder, int(config.data.cache_gib * 2**30)).open


def _stretches(shards: NDArray[np.int64]) -> list[slice]:
    """Cut rows into stretches of one shard each."""
    cuts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(shards)]
    return [slice(first, last) for first, last in pairwise(cuts)]
