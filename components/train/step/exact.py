"""Sums whose result does not depend on how their terms were spread over ranks.

Floating-point addition is not associative, so an all-reduce gives other last bits for each number of ranks. Here the
terms of a global batch are the leaves of one fixed binary tree over their positions 0 … n-1; which rank adds two
neighbours does not matter, because the same two are added. Each rank adds up what it can of its own stretch, at most
2 log₂ n subtrees remain, and rank 0 adds those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

# (level, index): covers the terms index·2^level to (index+1)·2^level - 1.
Subtree = tuple[int, int]


class TreeSum:
    """A partial sum over some leaves of a fixed tree.

    Args:
        size: The number of leaves, n.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.nodes: dict[Subtree, Tensor] = {}

    def add(self, node: Subtree, term: Tensor) -> None:
        """Add the sum of a subtree, and join it with its neighbours, if they are there."""
        while node != root(self._size):
            level, index = node
            sibling = (level, index ^ 1)
            if sibling[1] << level >= self._size:
                pass  # no leaf there, so the parent's sum is that of its one child
            elif sibling in self.nodes:
                other = self.nodes.pop(sibling)
                term = term + other if index % 2 == 0 else other + term
            else:
                break
            node = (level + 1, index // 2)
        self.nodes[node] = term


def root(size: int) -> Subtree:
    """Return the node that covers all leaves."""
    return (max(size - 1, 0).bit_length(), 0)


def covering_subtrees(first: int, last: int, size: int) -> list[Subtree]:
    """Return the nodes that remain when the leaves ``first`` to ``last - 1`` are added up, in order."""
    partial = TreeSum(size)
    empty = torch.zeros(0)
    for leaf in range(first, last):
        partial.add((0, leaf), empty)
    return sorted(partial.nodes, key=lambda node: node[1] << node[0])


def sum_over_ranks(partial: TreeSum, bounds: Sequence[int], like: Tensor) -> Tensor:
    """Add up the partial sums of all ranks; every rank calls it and gets the same bits.

    Args:
        partial: This rank's sum.
        bounds: Rank *r* has summed places ``bounds[r]`` to ``bounds[r + 1] - 1``; the last is the number of places, n,
            which is not 0.
        like: A tensor of the sum's shape, dtype and device.
    """
    rank, size = torch.distributed.get_rank(), bounds[-1]
    whole = like.new_empty(like.shape)
    if rank == 0:
        for node, term in _receive(bounds, like):
            partial.add(node, term)
        whole.copy_(partial.nodes[root(size)])
    else:
        for node in covering_subtrees(bounds[rank], bounds[rank + 1], size):
            torch.distributed.send(partial.nodes[node], dst=0)
    torch.distributed.broadcast(whole, src=0)
    return whole


def _receive(bounds: Sequence[int], like: Tensor) -> Iterator[tuple[Subtree, Tensor]]:
    for sender, (first, last) in enumerate(islice(pairwise(bounds), 1, None), start=1):
        for node in covering_subtrees(first, last, bounds[-1]):
            term = like.new_empty(like.shape)
            torch.distributed.recv(term, src=sender)
            yield node, term
