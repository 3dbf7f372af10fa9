"""How a global batch is divided over ranks and micro-batches (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil


def accumulation(global_batch: int, world: int, micro_batch: int) -> int:
    """Return how many micro-batches each rank runs per optimizer step: the same for all, as collectives demand."""
    return ceil(ceil(global_batch / world) / micro_batch)


def micro_batches(global_batch: int, world: int, rank: int, micro_batch: int) -> list[range]:
    """Return the positions in the global batch, from 0, of a rank's samples, one range per micro-batch.

    Over all ranks each position occurs once. Sizes differ by at most one; a range is empty if there are more ranks and
    micro-batches than samples.
    """
    first, last = rank * global_batch // world, (rank + 1) * global_batch // world
    count = accumulation(global_batch, world, micro_batch)
    cuts = [first + piece * (last - first) // count for piece in range(count + 1)]
    return [range(start, end) for start, end in pairwise(cuts)]


def expected_shards(window: Sequence[int], rank: int, world: int) -> list[int]:
    """Return the shards of a window that a rank will probably read, since a batch is in the order of its shards.

    Shards differ in size, so a rank's share of them ends up to one shard earlier or later than an equal one.
    """
    members = sorted(window)
    first, last = rank * len(members) // world - 1, -(-(rank + 1) * len(members) // world) + 1
    return members[max(first, 0) : last]
