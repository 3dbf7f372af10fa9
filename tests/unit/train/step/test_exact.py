from __future__ import annotations

import pytest
import torch

from components.train.step.exact import TreeSum, covering_subtrees, root


def spread(terms: torch.Tensor, world: int) -> torch.Tensor:
    """Add up the terms as ``world`` ranks would: each its own stretch, then rank 0 what remains."""
    size = len(terms)
    whole = TreeSum(size)
    for rank in range(world):
        first, last = rank * size // world, (rank + 1) * size // world
        partial = TreeSum(size)
        for leaf in range(first, last):
            partial.add((0, leaf), terms[leaf])
        assert sorted(partial.nodes, key=lambda node: node[1] << node[0]) == covering_subtrees(first, last, size)
        for node in covering_subtrees(first, last, size):
            whole.add(node, partial.nodes[node])
    assert list(whole.nodes) == [root(size)]
    return whole.nodes[root(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 10, 13, 64, 100])
def test_the_sum_has_the_same_bits_however_it_is_spread(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    # Terms of very different sizes, so that another order of additions shows.
    terms = torch.randn(size, 50, generator=generator) * 10 ** torch.randint(-6, 7, (size, 1), generator=generator)
    alone = spread(terms, 1)
    for world in range(2, size + 3):
        assert torch.equal(spread(terms, world), alone)
    torch.testing.assert_close(alone.double(), terms.double().sum(0), rtol=1e-4, atol=1e-2)


def test_plain_sums_would_differ() -> None:
    """The test above can fail: halves added up apart give other bits than all terms in a row."""
    terms = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    in_a_row = torch.zeros(50)
    for term in terms:
        in_a_row = in_a_row + term
    assert not torch.equal(in_a_row, spread(terms, 1))


def test_few_subtrees_remain() -> None:
    stretches = [(first, last) for first in range(0, 1000, 37) for last in range(first + 1, 1001, 11)]
    assert max(len(covering_subtrees(first, last, 1000)) for first, last in stretches) <= 20
