"""Which sample stands where: the order of every epoch as a pure function of (seed, epoch, dataset).

An epoch visits the shards in a keyed random order, in windows of a few shards at a time, and the samples of a window
in a keyed random order. So a reader has at most one window of shards open and yet neighbours are well mixed. Finding
the sample at a position costs O(log shards) time, however far into the epoch; nothing is drawn one after another, and
rank, world size, workers and restarts do not enter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_SHARDS, _SAMPLES = 1, 2  # which permutation a key is for


class Place(NamedTuple):
    """Where a sample lies: the shard's number in the dataset and the sample's number among its training samples."""

    shard: int
    sample: int


class Order:
    """The order of a dataset's training samples in every epoch.

    Args:
        sizes: The number of training samples of each shard, in the dataset's order.
        window: How many shards are shuffled together.
        seed: The run's seed.
    """

    def __init__(self, sizes: Sequence[int], window: int, seed: int) -> None:
        if not sizes or min(sizes) < 0 or sum(sizes) == 0:
            raise ValueError("an order needs at least one sample, and no shard has fewer than none")
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._window = window
        self._seed = seed
        self._epoch = -1
        self.samples = int(self._sizes.sum())

    def epoch_of(self, index: int) -> tuple[int, int]:
        """Split a position in the whole run into (epoch, position in the epoch)."""
        return divmod(index, self.samples)

    def places(self, epoch: int, positions: Sequence[int]) -> list[Place]:
        """Return where the samples at some positions of ``epoch`` lie."""
        self._enter(epoch)
        wanted = np.asarray(positions, dtype=np.int64)
        windows = np.searchsorted(self._window_ends, wanted, side="right")
        drawn = np.empty_like(wanted)
        for window in np.unique(windows):
            start = int(self._shard_starts[window * self._window])
            size = int(self._window_ends[window]) - start
            here = windows == window
            inside = (wanted[here] - start).astype(np.uint64)
            drawn[here] = start + permute(inside, size, _key(self._seed, epoch, _SAMPLES, int(window))).astype(np.int64)
        turns = np.searchsorted(self._shard_ends, drawn, side="right")
        shards, samples = self._shards[turns], drawn - self._shard_starts[turns]
        return [Place(int(shard), int(sample)) for shard, sample in zip(shards, samples, strict=True)]

    def _enter(self, epoch: int) -> None:
        """Lay out the shards of an epoch; the layout of the last one asked for is kept."""
        if epoch == self._epoch:
            return
        count = len(self._sizes)
        self._shards = permute(np.arange(count, dtype=np.uint64), count, _key(self._seed, epoch, _SHARDS, 0))
        sizes = self._sizes[self._shards.astype(np.int64)]
        self._shard_ends = np.cumsum(sizes)
        self._shard_starts = self._shard_ends - sizes
        last_of_window = np.minimum(np.arange(self._window - 1, count + self._window - 1, self._window), count - 1)
        self._window_ends = self._shard_ends[last_of_window]
        self._epoch = epoch


def permute(indices: NDArray[np.uint64], size: int, key: int) -> NDArray[np.uint64]:
    """Return where a keyed permutation of ``0 … size-1`` sends each index.

    A Feistel network over the next even number of bits, walked until it lands inside (Black & Rogaway, "Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002): a bijection that needs no table.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    rounds = [np.uint64(_key(key, turn)) for turn in range(_ROUNDS)]
    result = _feistel(indices, half, rounds)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], half, rounds)
    return result


def _feistel(indices: NDArray[np.uint64], half: int, rounds: Sequence[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left, right = indices >> np.uint64(half), indices & mask
    for round_key in rounds:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << np.uint64(half)) | right


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words with the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _key(*parts: int) -> int:
    """Fold numbers into one 64-bit key; the same numbers in another order give another key."""
    hashed = hashlib.blake2b(b",".join(b"%d" % part for part in parts), digest_size=8).digest()
    return int.from_bytes(hashed, "little")
