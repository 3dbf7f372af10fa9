"""How a global batch is divided over ranks and micro-batches (pure)."""

from __future__ import annotations

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
