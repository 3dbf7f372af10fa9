"""Which bucket each global batch takes its samples from: in proportion to their sizes, evenly, and pure.

Bucket b, with a share s_b of all samples, takes one batch in each stretch of 1/s_b batches, at a random moment of it
(stratified, or jittered, sampling: Cook, "Stochastic Sampling in Computer Graphics", ACM TOG 5(1), 1986). Batches are
numbered in the order of those moments. So no bucket strays from its share by much more than a batch, the pattern does
not repeat, and the bucket of any batch can be computed without going through those before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.rng import hash_key

_BUCKETS = 3  # beside the shuffles of `components.train.data.order`
# Moments are whole numbers, in this fraction of a batch: rounding is the same on every machine.
_BATCH = 1 << 32


class BucketSchedule:
    """Divides the global batches among buckets.

    Args:
        sizes: The number of samples of each bucket; none is empty.
        seed: The run's seed.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError("a schedule needs buckets with at least one sample each")
        self._sizes = sizes
        self._total = sum(sizes)
        self._seed = seed

    def at(self, number: int) -> tuple[int, int]:
        """Return which bucket batch ``number``, from 0, takes its samples from, and how many batches it took before."""
        buckets = len(self._sizes)
        if buckets == 1:
            return 0, number
        # By moment t at least t - B and at most t + B batches have been, so this batch lies between these two.
        begin, end = max(0, number - buckets) * _BATCH, (number + buckets + 1) * _BATCH
        before = [self._count(bucket, begin) for bucket in range(buckets)]
        near = sorted(
            (self._moment(bucket, turn), bucket, turn)
            for bucket in range(buckets)
            for turn in range(before[bucket], self._count(bucket, end))
        )
        _, bucket, turn = near[number - sum(before)]
        return bucket, turn

    def _count(self, bucket: int, moment: int) -> int:
        """Return the number of the bucket's batches before a moment."""
        whole = moment * self._sizes[bucket] // (self._total * _BATCH)
        return whole + (self._moment(bucket, whole) < moment)

    def _moment(self, bucket: int, turn: int) -> int:
        """Return when the bucket takes its batch ``turn``."""
        within = hash_key(self._seed, _BUCKETS, bucket, turn) % _BATCH
        return (turn * _BATCH + within) * self._total // self._sizes[bucket]
