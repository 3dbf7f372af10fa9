"""The order: every sample once in every epoch, well mixed, and as cheap for a billion samples as for a thousand."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.train.data import order as order_module
from components.train.data.order import Order, Places, permutation

Rows = list[tuple[int, int, int, int]]


def rows(places: Places) -> Rows:
    return list(zip(*(numbers.tolist() for numbers in places), strict=True))


def batches(order: Order, size: int, count: int, first: int = 0) -> Rows:
    return [row for number in range(first, first + count) for row in rows(order.batch(number, size))]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 1000])
def test_shuffled_is_a_permutation_that_depends_on_every_part_of_its_key(size: int) -> None:
    drawn = permutation(size, 7, 1)
    assert sorted(drawn.tolist()) == list(range(size))
    if size > 10:
        assert drawn.tolist() != permutation(size, 7, 2).tolist()
        assert drawn.tolist() != permutation(size, 1, 7).tolist()


@pytest.mark.parametrize("sizes", [[1], [3, 5, 0, 7, 2], [64] * 9, [0, 0, 4], [1] * 30])
@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize("block", [4, 4096])
def test_every_sample_stands_once_in_every_epoch(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], window: int, block: int
) -> None:
    monkeypatch.setattr(order_module, "_BLOCK", block)
    order = Order(sizes, window, seed=3)
    visited = batches(order, size=1, count=3 * order.samples)
    expected = [(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)]
    for epoch in range(3):
        here = [row for row in visited if row[0] == epoch]
        assert [row[1] for row in here] == list(range(order.samples))
        assert sorted(row[2:] for row in here) == expected


@given(
    sizes=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=4),
    window=st.integers(1, 4),
    size=st.integers(1, 25),
    seed=st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_buckets_and_their_tails_are_whole_in_every_epoch(
    sizes: list[list[int]], window: int, size: int, seed: int
) -> None:
    flat = [count for bucket in sizes for count in bucket]
    if not sum(flat):
        return
    order = Order(flat, window, seed, [len(bucket) for bucket in sizes])
    owner = [number for number, bucket in enumerate(sizes) for _ in bucket]
    visited: dict[tuple[int, int], Rows] = {}
    drawn: Counter[int] = Counter()
    # The smallest bucket takes one batch in each stretch of this many.
    stretch = -(-order.samples // min(sum(bucket) for bucket in sizes if sum(bucket)))
    for number in range(max(3 * order.samples // size, 2 * stretch) + 2 * len(sizes)):
        batch = rows(order.batch(number, size))
        assert len(batch) == size
        (bucket,) = {owner[shard] for _, _, shard, _ in batch}
        drawn[bucket] += size
        for row in batch:
            visited.setdefault((bucket, row[0]), []).append(row)
    ends = list(accumulate(map(sum, sizes)))
    for (bucket, epoch), here in visited.items():
        held = sum(sizes[bucket])
        assert len({row[1] for row in here}) == len(here), "no position twice"
        assert len({row[2:] for row in here}) == len(here), "no sample twice"
        whole = (epoch + 1) * held <= drawn[bucket]
        assert len(here) == (held if whole else drawn[bucket] - epoch * held)
        if whole:
            assert {row[1] for row in here} == set(range(ends[bucket] - held, ends[bucket]))
    assert set(drawn) == {number for number, bucket in enumerate(sizes) if sum(bucket)}


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    sizes, buckets = [7, 9, 4, 11, 6, 6], [4, 2]
    whole = [rows(Order(sizes, 2, 1, buckets).batch(number, 5)) for number in range(40)]
    apart = Order(sizes, 2, 1, buckets)
    assert [rows(apart.batch(number, 5)) for number in reversed(range(40))] == whole[::-1]


def test_epochs_and_seeds_give_other_orders() -> None:
    first, second = Order([50, 50], 2, seed=1), Order([50, 50], 2, seed=2)
    zero, one, other = batches(first, 1, 100), batches(first, 1, 100, first=100), batches(second, 1, 100)
    assert len({tuple(row[2:] for row in visited) for visited in (zero, one, other)}) == 3


def test_only_one_window_of_shards_is_open_at_a_time() -> None:
    order = Order([10] * 20, window=4, seed=0)
    for number in range(5):
        batch = order.batch(number, 40)
        here, after = order.windows(number, 40)
        assert set(batch.shards.tolist()) == set(here.members.tolist())
        assert len(here.members) == 4
        assert set(order.batch(number + 1, 40).shards.tolist()) == set(after.members.tolist())


def test_a_batch_stands_in_the_order_of_its_shards_so_that_a_rank_sees_few() -> None:
    order = Order([200] * 64, window=16, seed=4)
    of_rank: list[set[int]] = [set() for _ in range(8)]
    for number in range(25):  # the first window: 3,200 samples
        batch = order.batch(number, 128)
        assert batch.shards.tolist() == sorted(batch.shards.tolist())
        for rank, visited in enumerate(of_rank):
            visited.update(batch.shards[16 * rank : 16 * (rank + 1)].tolist())
    assert len(set.union(*of_rank)) == 16
    assert max(len(visited) for visited in of_rank) <= 6


def test_samples_are_shuffled_well() -> None:
    """Chi-squared of (position, sample) cells over many epochs: each sample is equally likely to stand anywhere."""
    order = Order([8, 8], window=2, seed=11)
    epochs = 2000
    counts: Counter[tuple[int, int]] = Counter()
    for _, position, shard, sample in batches(order, 16, epochs):
        counts[position, shard * 8 + sample] += 1
    expected = epochs / 16
    statistic = sum((counts[i, j] - expected) ** 2 / expected for i in range(16) for j in range(16))
    # 15² degrees of freedom: mean 225, standard deviation √450 ≈ 21; five of them either way.
    assert 225 - 5 * 21.2 < statistic < 225 + 5 * 21.2


def test_shards_meet_every_other_shard_in_a_window() -> None:
    """Over many epochs any two of 24 shards share a window of 4 equally often: 3 in 23 of the time."""
    order = Order([1] * 24, window=4, seed=2)
    epochs = 3000
    together = np.zeros((24, 24))
    for number in range(6 * epochs):
        members = order.batch(number, 4).shards
        together[np.ix_(members, members)] += 1
    pairs = together[np.triu_indices(24, k=1)]
    expected = epochs * 3 / 23
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected)


def test_neighbours_are_from_any_two_samples_of_the_window() -> None:
    order = Order([500] * 8, window=8, seed=9)
    stream = order._streams[0].read(0, 4000)
    same_shard = (stream.shards[:-1] == stream.shards[1:]).mean()
    assert abs(same_shard - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / 4000)
    assert abs(np.corrcoef(stream.samples[:-1], stream.samples[1:])[0, 1]) < 5 / np.sqrt(4000)


def peak_bytes(shards: int, differing: bool) -> tuple[int, float]:
    """Return the most memory that the order of shards of 1,000 takes, without their sizes, and seconds per batch."""
    sizes = np.full(shards, 1000, dtype=np.uint32) if differing else np.broadcast_to(np.uint32(1000), shards)
    tracemalloc.start()
    order = Order(sizes, window=8, seed=1)
    last = 3 * order.samples // 256
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        order.batch(int(share * last), 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    began = time.perf_counter()
    order.batch(int(0.37 * last), 256)
    return peak, time.perf_counter() - began


def test_memory_and_time_are_flat_from_ten_thousand_to_a_billion_samples() -> None:
    peak_bytes(10, differing=False)  # what is allocated once in a process
    peaks = {samples: peak_bytes(samples // 1000, differing=False) for samples in (10**4, 10**6, 10**8, 10**9)}
    assert max(peak for peak, _ in peaks.values()) < 1.5 * 2**20
    assert peaks[10**9][0] < peaks[10**6][0] + 2**18, "what a block of 4,096 shards adds"
    assert max(seconds for _, seconds in peaks.values()) < 1
    assert abs(peak_bytes(10**6, differing=True)[0] - peaks[10**9][0]) < 2**16, "beyond the sizes themselves"


@pytest.mark.parametrize("sizes", [[0, 0], []])
def test_an_order_of_nothing_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Order(sizes, 1, 0)


def test_buckets_that_are_not_all_shards_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 shards.* 2"):
        Order([1, 1], 1, 0, [1, 2])
