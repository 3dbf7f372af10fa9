from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from components.train.order import Order, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permute_is_a_bijection(size: int) -> None:
    images = permute(np.arange(size, dtype=np.uint64), size, key=7)
    assert sorted(images.tolist()) == list(range(size))


def test_permutations_of_two_keys_differ() -> None:
    indices = np.arange(100, dtype=np.uint64)
    assert permute(indices, 100, 1).tolist() != permute(indices, 100, 2).tolist()


@pytest.mark.parametrize("sizes", [[1], [3, 5, 0, 7, 2], [64] * 9, [0, 0, 4]])
@pytest.mark.parametrize("window", [1, 2, 100])
def test_every_sample_stands_once_in_every_epoch(sizes: list[int], window: int) -> None:
    order = Order(sizes, window, seed=3)
    for epoch in range(3):
        places = order.places(epoch, range(order.samples))
        expected = [(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)]
        assert sorted(places) == expected


def test_a_place_does_not_depend_on_what_was_asked_before_or_with_it() -> None:
    sizes = [7, 9, 4, 11]
    whole = Order(sizes, 2, seed=1).places(5, range(31))
    apart = Order(sizes, 2, seed=1)
    apart.places(0, [3])
    assert [apart.places(5, [position])[0] for position in reversed(range(31))] == whole[::-1]


def test_epochs_and_seeds_give_other_orders() -> None:
    sizes = [50, 50]
    first = Order(sizes, 2, seed=1)
    assert first.places(0, range(100)) != first.places(1, range(100))
    assert first.places(0, range(100)) != Order(sizes, 2, seed=2).places(0, range(100))


def test_only_one_window_of_shards_is_open_at_a_time() -> None:
    order = Order([10] * 20, window=4, seed=0)
    for start in range(0, 200, 40):
        assert len({place.shard for place in order.places(0, range(start, start + 40))}) == 4


def test_samples_are_shuffled_well() -> None:
    """Chi-squared of (position, sample) cells over many epochs: each sample is equally likely to stand anywhere."""
    order = Order([8, 8], window=2, seed=11)
    epochs = 2000
    counts: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        for position, place in enumerate(order.places(epoch, range(16))):
            counts[position, place.shard * 8 + place.sample] += 1
    expected = epochs / 16
    statistic = sum((counts[i, j] - expected) ** 2 / expected for i in range(16) for j in range(16))
    # 15² degrees of freedom: mean 225, standard deviation √450 ≈ 21; five of them either way.
    assert 225 - 5 * 21.2 < statistic < 225 + 5 * 21.2


def test_an_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Order([0, 0], 1, 0)
