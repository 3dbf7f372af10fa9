"""Which samples make up which global batch: a pure function of (seed, dataset), for the whole run.

Position i of the run belongs to global batch ``i div G``. A global batch holds samples of one bucket, since a forward
pass needs one shape: were buckets mixed in a batch and only kept apart in micro-batches, how many micro-batches a step
takes, and how full they are, would depend on the draw and on the world size, and all ranks would wait for the one with
the most. `components.train.data.bucket_schedule` says which bucket a batch takes, and how many batches it took before.

Each bucket is an endless stream of samples, epoch after epoch, and a batch takes the next G of it. So every batch is
full, every sample stands exactly once in every epoch of its bucket, and an epoch's tail shares its batch with the
beginning of the next.

An epoch of a bucket is shuffled on three levels: blocks of up to 4,096 shards, the shards of a block, and the samples
of a window of a few shards. So a reader has one window of shards open at a time and yet neighbours are well mixed; up
to 4,096 shards, any two of them are as likely to share a window. Each shuffle sorts by a keyed hash; a block or a
window is shuffled when a position in it is needed. So finding a sample takes the same time however far into the
run it is, and memory does not grow with the dataset beyond the shards' sizes: four bytes per shard if they differ.

Within a global batch samples stand in the order of their shards. Ranks take their shares from left to right, so each
of them, and each node, sees few of the window's shards, without the world size having a say in the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.rng import hash_key, scramble
from components.train.data.bucket_schedule import BucketSchedule

IntArray = NDArray[np.int64]
_BLOCK = 4096
_BLOCKS, _SHARDS, _SAMPLES = range(3)  # the three levels of shuffling


class Places(NamedTuple):
    """The positions of some samples of one bucket in the run, and where they are stored; one number each per sample.

    Attributes:
        epochs: Their bucket's epoch, from 0.
        positions: Their positions in that epoch, from 0 to the number of samples - 1; each bucket has its own range.
            Everything random about a sample depends on seed, epoch and position.
        shards: Numbers of their shards in the dataset.
        samples: Numbers among their shard's training samples.
    """

    epochs: IntArray
    positions: IntArray
    shards: IntArray
    samples: IntArray

    def take(self, chosen: slice | IntArray) -> Places:
        """Return some of them."""
        return Places(*(numbers[chosen] for numbers in self))


class Window(NamedTuple):
    """A window of shards that are shuffled together, and its samples in order.

    Attributes:
        end: Position in the bucket's epoch where the next window begins.
        members: Numbers of its shards in the dataset.
        shards: Each sample's shard.
        samples: Each sample's number among its shard's training samples.
    """

    end: int
    members: IntArray
    shards: IntArray
    samples: IntArray


class Order:
    """The order of a dataset's training samples.

    Args:
        sizes: The number of training samples of each shard, in the dataset's order.
        window: Number of shards that are shuffled together.
        seed: The run's seed.
        buckets: Number of shards of each bucket, in the dataset's order, which keeps a bucket's shards together; if
            not given, all are of one bucket.

    Attributes:
        samples: The number of samples of an epoch.
    """

    def __init__(self, sizes: ArrayLike, window: int, seed: int, buckets: Sequence[int] | None = None) -> None:
        counts = np.asarray(sizes)
        cuts = [0, *np.cumsum(buckets if buckets is not None else [len(counts)]).tolist()]
        if cuts[-1] != len(counts):
            raise ValueError(f"the buckets have {cuts[-1]} shards, but there are {len(counts)}")
        streams = []
        self.samples = 0
        for number, (first, last) in enumerate(pairwise(cuts)):
            stream = BucketStream(counts[first:last], first, self.samples, window, (seed, number))
            self.samples += stream.samples
            streams += [stream] if stream.samples else []
        if not streams:
            raise ValueError("an order needs at least one sample")
        self._streams = streams
        self._schedule = BucketSchedule([stream.samples for stream in streams], seed)

    def batch(self, number: int, size: int) -> Places:
        """Return the places of global batch ``number``, from 0, of ``size`` samples."""
        bucket, turn = self._schedule.at(number)
        places = self._streams[bucket].read(turn * size, size)
        return places.take(np.lexsort((places.epochs, places.samples, places.shards)))

    def windows(self, number: int, size: int) -> tuple[Window, Window]:
        """Return the window that global batch ``number`` begins in, and the one that its bucket goes on with."""
        bucket, turn = self._schedule.at(number)
        stream = self._streams[bucket]
        epoch, position = divmod(turn * size, stream.samples)
        window = stream.window(epoch, position)
        after = (epoch, window.end) if window.end < stream.samples else (epoch + 1, 0)
        return window, stream.window(*after)


class BucketStream:
    """The samples of one bucket, epoch after epoch.

    Args:
        sizes: The number of training samples of each of its shards.
        first_shard: The number of its first shard in the dataset.
        first_position: The number of samples of the buckets before it.
        window: Number of shards that are shuffled together.
        key: Key of its shuffles, besides the epoch.
    """

    def __init__(
        self, sizes: NDArray[np.integer], first_shard: int, first_position: int, window: int, key: tuple[int, ...]
    ) -> None:
        self._sizes = sizes
        self._first_shard = first_shard
        self._first_position = first_position
        self._window = window
        self._key = key
        self._blocks = _cut(len(sizes), _BLOCK)
        self._block_sizes = np.array([sizes[a:b].sum(dtype=np.int64) for a, b in pairwise(self._blocks)], np.int64)
        self.samples = int(self._block_sizes.sum())
        # Neighbouring batches need the same window, and a reader the next one, too.
        self._epoch = lru_cache(maxsize=2)(self._shuffle_blocks)
        self._block = lru_cache(maxsize=2)(self._shuffle_shards)
        self._samples = lru_cache(maxsize=3)(self._shuffle_samples)

    def read(self, first: int, count: int) -> Places:
        """Return ``count`` places of the stream from its position ``first`` on, in order."""
        pieces = list(self._pieces(first, count))
        return Places(*map(np.concatenate, zip(*pieces, strict=True)))

    def window(self, epoch: int, position: int) -> Window:
        """Return the window that a position of an epoch lies in."""
        order, block_ends = self._epoch(epoch)
        turn = int(np.searchsorted(block_ends, position, side="right"))
        block = int(order[turn])
        start = int(block_ends[turn] - self._block_sizes[block])
        _, window_ends, _ = self._block(epoch, block)
        return self._samples(epoch, block, int(np.searchsorted(window_ends, position - start, side="right")), start)

    def _pieces(self, first: int, count: int) -> Iterator[Places]:
        while count > 0:
            epoch, position = divmod(first, self.samples)
            window = self.window(epoch, position)
            length = min(count, window.end - position)
            begin = position - (window.end - len(window.samples))
            here = slice(begin, begin + length)
            positions = np.arange(position, position + length) + self._first_position
            yield Places(np.full(length, epoch), positions, window.shards[here], window.samples[here])
            first, count = first + length, count - length

    def _shuffle_blocks(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Return the blocks in an epoch's order, and where each of them ends."""
        order = permutation(len(self._block_sizes), *self._key, _BLOCKS, epoch)
        return order, np.cumsum(self._block_sizes[order])

    def _shuffle_shards(self, epoch: int, block: int) -> tuple[IntArray, IntArray, list[int]]:
        """Return a block's shards in an epoch's order, where each window ends, and which shard each begins with."""
        first, last = self._blocks[block : block + 2]
        shards = first + permutation(last - first, *self._key, _SHARDS, epoch, block)
        cuts = _cut(last - first, self._window)
        ends = np.cumsum(self._sizes[shards], dtype=np.int64)
        return shards, ends[np.array(cuts[1:]) - 1], cuts

    def _shuffle_samples(self, epoch: int, block: int, number: int, start: int) -> Window:
        shards, ends, cuts = self._block(epoch, block)
        members = shards[cuts[number] : cuts[number + 1]]
        sizes = self._sizes[members].astype(np.int64)
        drawn = permutation(int(sizes.sum()), *self._key, _SAMPLES, epoch, block, number)
        owners = np.repeat(np.arange(len(members)), sizes)[drawn]
        numbers = drawn - (np.cumsum(sizes) - sizes)[owners]
        members = members + self._first_shard
        return Window(start + int(ends[number]), members, members[owners], numbers)


def permutation(size: int, *key: int) -> IntArray:
    """Return 0 … size - 1 in a random order that depends on the key alone: that of 64-bit hashes, ties unchanged."""
    words = np.arange(size, dtype=np.uint64) + np.uint64(hash_key(*key))
    return np.argsort(scramble(words), kind="stable")


def _cut(size: int, most: int) -> list[int]:
    """Cut 0 … size into as few stretches as can be, none longer than ``most`` and all alike to within one."""
    parts = max(1, -(-size // most))
    return [part * size // parts for part in range(parts + 1)]
