"""Which samples make up which global batch: a pure function of (seed, dataset), for the whole run.

Position i of the run belongs to global batch ``i div G``. A global batch holds samples of one bucket, since a forward
pass needs one shape: were buckets mixed in a batch and only kept apart in micro-batches, how many micro-batches a step
takes, and how full they are, would depend on the draw and on the world size, and all ranks would wait for the one with
the most. `components.train.data.bucket_schedule` says which bucket a batch takes, and how many batches it took before.

Each bucket is an endless stream of samples, epoch after epoch, and a batch takes the next G of it. So every batch is
full, every sample stands exactly once in every epoch of its bucket, and an epoch's tail shares its batch with the
beginning of the next.

If some samples are to stand more or less often in an epoch than once, those that stand equally often are a class. A
class of N samples that stand r times each is a cycle: its entry i is sample i mod N, and epoch e has the entries from
⌊e·r·N⌋ to ⌊(e+1)·r·N⌋. So after any number of epochs no sample of a class has stood more than once more often than
another, and what an epoch has of a shard follows from the class's numbers before the shard.

An epoch of a bucket is shuffled on three levels: blocks of up to 4,096 shards, the shards of a block, and the samples
of a window of a few shards. So a reader has one window of shards open at a time and yet neighbours are well mixed; up
to 4,096 shards, any two of them are as likely to share a window. Each shuffle sorts by a keyed hash; a block or a
window is shuffled when a position in it is needed. So finding a sample takes the same time however far into the
run it is, and memory does not grow with the dataset beyond the shards' sizes: four bytes per shard and class.

Within a global batch samples stand in the order of their shards. Ranks take their shares from left to right, so each
of them, and each node, sees few of the window's shards, without the world size having a say in the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
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


class Repeats(NamedTuple):
    """How often samples stand in an epoch, if not each once.

    Attributes:
        rates: How often those of each class do.
        counts: ``[classes, shards]``: the number of training samples of each class.
        classes: Returns the class of each training sample of a shard, by the shard's number in the dataset.
    """

    rates: Sequence[Fraction]
    counts: NDArray[np.integer]
    classes: Callable[[int], IntArray]


class Window(NamedTuple):
    """A window of shards that are shuffled together, and its samples in order.

    Attributes:
        end: Position in the bucket's epoch where the next window begins.
        members: Numbers of its shards in the dataset, without those that have nothing in this epoch.
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
        repeats: How often samples stand in an epoch; None if each does once.

    Attributes:
        samples: The number of samples of an epoch, on average if some stand in it a fraction of a time.
    """

    def __init__(
        self,
        sizes: ArrayLike,
        window: int,
        seed: int,
        buckets: Sequence[int] | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        counts = np.asarray(sizes)
        cuts = [0, *np.cumsum(buckets if buckets is not None else [len(counts)]).tolist()]
        if cuts[-1] != len(counts):
            raise ValueError(f"the buckets have {cuts[-1]} shards, but there are {len(counts)}")
        repeats = repeats or Repeats([Fraction(1)], counts[np.newaxis], np.zeros_like)
        streams, positions = [], 0
        for number, (first, last) in enumerate(pairwise(cuts)):
            stream = BucketStream(repeats, first, last, positions, window, (seed, number))
            positions += stream.most_positions
            streams += [stream] if stream.samples else []
        if not streams:
            raise ValueError("an order needs at least one sample")
        self.samples = max(1, round(sum(stream.samples for stream in streams)))
        self._streams = streams
        whole = math.lcm(*(stream.samples.denominator for stream in streams))
        self._schedule = BucketSchedule([int(stream.samples * whole) for stream in streams], seed)

    def batch(self, number: int, size: int) -> Places:
        """Return the places of global batch ``number``, from 0, of ``size`` samples."""
        bucket, turn = self._schedule.at(number)
        places = self._streams[bucket].read(turn * size, size)
        return places.take(np.lexsort((places.epochs, places.samples, places.shards)))

    def windows(self, number: int, size: int) -> tuple[Window, Window]:
        """Return the window that global batch ``number`` begins in, and the one that its bucket goes on with."""
        bucket, turn = self._schedule.at(number)
        stream = self._streams[bucket]
        epoch, position = stream.locate(turn * size)
        window = stream.window(epoch, position)
        return window, stream.window(*stream.locate(stream.start(epoch) + window.end))


class BucketStream:
    """The samples of one bucket, epoch after epoch.

    Args:
        repeats: How often the samples of each class stand in an epoch.
        first_shard: The number of its first shard in the dataset.
        last_shard: One more than that of its last shard.
        first_position: How many positions the buckets before it may have in an epoch.
        window: Number of shards that are shuffled together.
        key: Key of its shuffles, besides the epoch.

    Attributes:
        samples: Samples of an epoch; if this is no whole number, an epoch has one more or less than another.
        most_positions: Samples of an epoch, at most.
    """

    def __init__(
        self,
        repeats: Repeats,
        first_shard: int,
        last_shard: int,
        first_position: int,
        window: int,
        key: tuple[int, ...],
    ) -> None:
        self._counts = repeats.counts[:, first_shard:last_shard]
        self._classes = repeats.classes
        self._first_shard = first_shard
        self._first_position = first_position
        self._window = window
        self._key = key
        self._blocks = _cut(last_shard - first_shard, _BLOCK)
        parts = [self._counts[:, a:b].sum(axis=1, dtype=np.int64) for a, b in pairwise(self._blocks)]
        self._block_counts = np.stack(parts, axis=1)
        self._totals: list[int] = self._block_counts.sum(axis=1).tolist()
        self._rates = [rate * total for rate, total in zip(repeats.rates, self._totals, strict=True)]
        self.samples = sum(self._rates, Fraction(0))
        self.most_positions = sum(map(math.ceil, self._rates))
        # Neighbouring batches need the same window, and a reader the next one, too.
        self._epoch = lru_cache(maxsize=2)(self._shuffle_blocks)
        self._block = lru_cache(maxsize=2)(self._shuffle_shards)
        self._samples = lru_cache(maxsize=3)(self._shuffle_samples)

    def start(self, epoch: int) -> int:
        """Return how many samples the epochs before one have."""
        return sum(self._entries(epoch))

    def locate(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position of the stream, and the position in that epoch."""
        epoch = position * self.samples.denominator // self.samples.numerator
        while self.start(epoch + 1) <= position:  # each class has begun at most one entry later than its rate says
            epoch += 1
        return epoch, position - self.start(epoch)

    def read(self, first: int, count: int) -> Places:
        """Return ``count`` places of the stream from its position ``first`` on, in order."""
        pieces = list(self._pieces(first, count))
        return Places(*map(np.concatenate, zip(*pieces, strict=True)))

    def window(self, epoch: int, position: int) -> Window:
        """Return the window that a position of an epoch lies in."""
        order, block_sizes, block_ends = self._epoch(epoch)
        turn = int(np.searchsorted(block_ends, position, side="right"))
        block = int(order[turn])
        start = int(block_ends[turn] - block_sizes[block])
        window_ends = self._block(epoch, block).window_ends
        return self._samples(epoch, block, int(np.searchsorted(window_ends, position - start, side="right")), start)

    def _pieces(self, first: int, count: int) -> Iterator[Places]:
        while count > 0:
            epoch, position = self.locate(first)
            window = self.window(epoch, position)
            length = min(count, window.end - position)
            begin = position - (window.end - len(window.samples))
            here = slice(begin, begin + length)
            positions = np.arange(position, position + length) + self._first_position
            yield Places(np.full(length, epoch), positions, window.shards[here], window.samples[here])
            first, count = first + length, count - length

    def _entries(self, epoch: int) -> list[int]:
        """Return how many entries of each class's cycle the epochs before one have."""
        return [epoch * rate.numerator // rate.denominator for rate in self._rates]

    def _entries_of(self, counts: IntArray, before: IntArray, epoch: int) -> IntArray:
        """Return how many entries of some shards, or blocks of them, the epochs before one have.

        Args:
            counts: ``[classes, N]``: their training samples.
            before: ``[classes, N]``: the training samples of the class before them in the bucket.
            epoch: The epoch.
        """
        entries = np.array(self._entries(epoch), dtype=np.int64)[:, np.newaxis]
        turns, rest = np.divmod(entries, np.maximum(np.array(self._totals, dtype=np.int64), 1)[:, np.newaxis])
        return turns * counts + np.clip(rest - before, 0, counts)

    def _shuffle_blocks(self, epoch: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return the blocks in an epoch's order, the sizes of all, and where each in that order ends."""
        counts = self._block_counts
        before = np.cumsum(counts, axis=1) - counts
        sizes = (self._entries_of(counts, before, epoch + 1) - self._entries_of(counts, before, epoch)).sum(axis=0)
        order = permutation(counts.shape[1], *self._key, _BLOCKS, epoch)
        return order, sizes, np.cumsum(sizes[order])

    def _shuffle_shards(self, epoch: int, block: int) -> _Block:
        first, last = self._blocks[block : block + 2]
        counts = self._counts[:, first:last].astype(np.int64)
        before = np.cumsum(counts, axis=1) - counts + self._block_counts[:, :block].sum(axis=1)[:, np.newaxis]
        begin, end = (self._entries_of(counts, before, number) for number in (epoch, epoch + 1))
        order = permutation(last - first, *self._key, _SHARDS, epoch, block)
        cuts = _cut(last - first, self._window)
        sizes = (end - begin)[:, order]
        ends = np.cumsum(sizes.sum(axis=0))
        return _Block(first + order, begin[:, order], sizes, ends[np.array(cuts[1:]) - 1], cuts)

    def _shuffle_samples(self, epoch: int, block: int, number: int, start: int) -> Window:
        of_block = self._block(epoch, block)
        here = slice(*of_block.cuts[number : number + 2])
        sizes = of_block.sizes[:, here].sum(axis=0)
        present = np.flatnonzero(sizes)
        shards = (of_block.shards[here] + self._first_shard)[present]
        drawn = permutation(int(sizes.sum()), *self._key, _SAMPLES, epoch, block, number)
        owners = np.repeat(shards, sizes[present])[drawn]
        begin, sizes = of_block.begin[:, here][:, present], of_block.sizes[:, here][:, present]
        samples = [self._samples_of(shard, begin[:, i], sizes[:, i]) for i, shard in enumerate(shards.tolist())]
        return Window(start + int(of_block.window_ends[number]), shards, owners, np.concatenate(samples)[drawn])

    def _samples_of(self, shard: int, begin: IntArray, sizes: IntArray) -> IntArray:
        """Return the samples of a shard's entries in an epoch, class by class.

        Args:
            shard: The shard's number in the dataset.
            begin: ``[classes]``: how many entries the epochs before have.
            sizes: ``[classes]``: how many this epoch has.
        """
        if len(sizes) == 1:
            only: IntArray = (begin[0] + np.arange(sizes[0])) % int(self._counts[0, shard - self._first_shard])
            return only
        classes, parts = self._classes(shard), []
        for number in np.flatnonzero(sizes).tolist():
            samples = np.flatnonzero(classes == number)
            parts.append(samples[(begin[number] + np.arange(sizes[number])) % len(samples)])
        return np.concatenate(parts)


class _Block(NamedTuple):
    """A block of a bucket's shards in the order of an epoch.

    Attributes:
        shards: ``[N]``: their numbers in the bucket.
        begin: ``[classes, N]``: how many of their entries the epochs before have.
        sizes: ``[classes, N]``: how many this epoch has.
        window_ends: Where each window ends, from the beginning of the block on.
        cuts: Which shard each window begins with, and the number of shards.
    """

    shards: IntArray
    begin: IntArray
    sizes: IntArray
    window_ends: IntArray
    cuts: list[int]


def permutation(size: int, *key: int) -> IntArray:
    """Return 0 … size - 1 in a random order that depends on the key alone: that of 64-bit hashes, ties unchanged."""
    words = np.arange(size, dtype=np.uint64) + np.uint64(hash_key(*key))
    return np.argsort(scramble(words), kind="stable")


def _cut(size: int, most: int) -> list[int]:
    """Cut 0 … size into as few stretches as can be, none longer than ``most`` and all alike to within one."""
    parts = max(1, -(-size // most))
    return [part * size // parts for part in range(parts + 1)]
