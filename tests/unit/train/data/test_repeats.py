"""Repeats: a sample stands in an epoch as often as it is to, fractions are fair over epochs, and all of it is pure."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.train.data import order as order_module
from components.train.data.order import Order, Repeats

RATES = [Fraction(1, 3), Fraction(1), Fraction(5, 2)]
# The classes of each shard's samples, by bucket.
BUCKETS = [[[0, 1, 2, 2], [], [1, 1], [0, 0, 0, 0, 0]], [[0], [2]], [[0, 0]]]


def make(buckets: list[list[list[int]]], rates: list[Fraction] = RATES, window: int = 2, seed: int = 3) -> Order:
    shards = [np.array(shard, dtype=np.int64) for bucket in buckets for shard in bucket]
    counts = np.array([[np.count_nonzero(shard == number) for shard in shards] for number in range(len(rates))])
    repeats = Repeats(rates, counts, lambda shard: shards[shard])
    return Order([len(shard) for shard in shards], window, seed, [len(bucket) for bucket in buckets], repeats)


def seen(order: Order, bucket: int, epochs: int) -> list[Counter[tuple[int, int]]]:
    """How often each sample of a bucket stood in each epoch: shard and sample."""
    stream = order._streams[bucket]
    places = stream.read(0, max(1, stream.start(epochs))).take(slice(stream.start(epochs)))
    rows = zip(*(numbers.tolist() for numbers in places), strict=True)
    counts: list[Counter[tuple[int, int]]] = [Counter() for _ in range(epochs)]
    positions: list[list[int]] = [[] for _ in range(epochs)]
    for epoch, position, shard, sample in rows:
        counts[epoch][shard, sample] += 1
        positions[epoch].append(position)
    for here in positions:
        assert here == list(range(here[0], here[0] + len(here))) if here else True
    return counts


@pytest.mark.parametrize("block", [1, 4096])
def test_samples_stand_in_epochs_as_often_as_they_are_to(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(order_module, "_BLOCK", block)
    order = make(BUCKETS)
    first_shards = [0, *accumulate(len(bucket) for bucket in BUCKETS)]
    for number, bucket in enumerate(BUCKETS):
        by_epoch = seen(order, number, 12)
        for epochs in range(1, 13):
            total = sum(by_epoch[:epochs], Counter[tuple[int, int]]())
            for shard, classes in enumerate(bucket, first_shards[number]):
                for sample, of_class in enumerate(classes):
                    exact = epochs * RATES[of_class]
                    assert abs(total[shard, sample] - exact) < 1, f"sample {sample} of shard {shard} after {epochs}"
    assert order.samples == round(9 * Fraction(1, 3) + 3 + 3 * Fraction(5, 2))


@given(
    shards=st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=6),
    rates=st.tuples(*[st.fractions(Fraction(1, 50), 7, max_denominator=50)] * 3),
    window=st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_no_sample_of_a_class_stands_more_than_once_more_often_than_another(
    shards: list[list[int]], rates: tuple[Fraction, ...], window: int
) -> None:
    if not any(shards):
        return
    order = make([shards], list(rates), window)
    by_epoch = seen(order, 0, 7)
    total = Counter[tuple[int, int]]()
    for epoch, counts in enumerate(by_epoch, start=1):
        total += counts
        for number, rate in enumerate(rates):
            of_class = [
                total[shard, sample]
                for shard, classes in enumerate(shards)
                for sample, one in enumerate(classes)
                if one == number
            ]
            assert not of_class or max(of_class) - min(of_class) <= 1
            assert sum(of_class) == epoch * rate * len(of_class) // 1


def test_once_each_is_the_order_without_repeats() -> None:
    sizes = [len(shard) for bucket in BUCKETS for shard in bucket]
    plain = Order(sizes, 2, 3, [len(bucket) for bucket in BUCKETS])
    once = make([[[0] * len(shard) for shard in bucket] for bucket in BUCKETS], [Fraction(1)])
    for number in range(40):
        for mine, other in zip(once.batch(number, 5), plain.batch(number, 5), strict=True):
            assert mine.tolist() == other.tolist()


def test_a_batch_is_the_same_whatever_was_read_before() -> None:
    order = make(BUCKETS)
    forwards = [order.batch(number, 5) for number in range(60)]
    assert all(len(places.shards) == 5 for places in forwards)
    for number in reversed(range(60)):
        alone = make(BUCKETS)
        for mine, other in zip(alone.batch(number, 5), forwards[number], strict=True):
            assert mine.tolist() == other.tolist()
        here, after = alone.windows(number, 5)
        assert len(here.samples) > 0
        assert len(after.samples) > 0


def test_windows_follow_one_another_over_epochs_in_which_a_bucket_has_nothing() -> None:
    order = make([[[0]]], [Fraction(1, 50)])
    assert order.batch(3, 1).epochs.tolist() == [199]  # the fourth entry of a sample that stands in every 50th epoch
    assert order.samples == 1


def test_shards_without_an_entry_in_an_epoch_are_not_opened() -> None:
    order = make([[[0] * 4, [0] * 4]], [Fraction(1, 2)])
    assert [order.windows(number, 4)[0].members.tolist() for number in range(3)] == [[0], [1], [0]]
