"""The schedule of buckets: pure, in proportion, and each bucket's batches in their order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.train.data.bucket_schedule import BucketSchedule

# What takes longer than an instant does not find a batch directly.
pytestmark = pytest.mark.timeout(20)

bucket_sizes = st.lists(st.integers(1, 10**9), min_size=1, max_size=12)


@given(sizes=bucket_sizes, seed=st.integers(0, 2**64 - 1), first=st.integers(0, 10**7))
@settings(deadline=None)
def test_each_bucket_takes_its_batches_in_order_and_none_twice(sizes: list[int], seed: int, first: int) -> None:
    schedule = BucketSchedule(sizes, seed)
    turns: dict[int, int] = {}
    for number in range(first, first + 60):
        bucket, turn = schedule.at(number)
        assert turn == turns.get(bucket, turn - 1) + 1
        turns[bucket] = turn


@given(sizes=bucket_sizes, number=st.integers(0, 300))
@settings(deadline=None)
def test_turns_are_counted_from_the_first_batch(sizes: list[int], number: int) -> None:
    schedule = BucketSchedule(sizes, 5)
    before = Counter(schedule.at(earlier)[0] for earlier in range(number))
    bucket, turn = schedule.at(number)
    assert turn == before[bucket]


@given(sizes=bucket_sizes, number=st.integers(1, 10**6))
@settings(deadline=None)
def test_buckets_keep_to_their_share(sizes: list[int], number: int) -> None:
    schedule = BucketSchedule(sizes, 2)
    bucket, turn = schedule.at(number)
    share = sizes[bucket] / sum(sizes)
    assert abs(turn - number * share) <= 1 + len(sizes) * share


def test_two_equal_buckets_do_not_simply_alternate() -> None:
    schedule = BucketSchedule([10, 10], 1)
    drawn = [schedule.at(number)[0] for number in range(4000)]
    follows = Counter(pairwise(drawn))
    # In each stretch of two batches either bucket may come first; half of all neighbours are of two stretches.
    assert abs(follows[0, 0] / 4000 - 1 / 8) < 0.02
    assert drawn.count(0) in range(1998, 2003)


def test_a_schedule_is_never_another_in_a_later_release() -> None:
    """A training that goes on with a new release must not see samples twice, or never."""
    schedule = BucketSchedule([7, 2, 1], 3)
    buckets, turns = zip(*map(schedule.at, range(12)), strict=True)
    assert buckets == (0, 0, 0, 1, 1, 0, 0, 0, 2, 0, 2, 0)
    assert turns == (0, 1, 2, 0, 1, 3, 4, 5, 0, 6, 1, 7)
    assert schedule.at(10**8) == (0, 70_000_000)


def test_schedule_depends_on_the_seed() -> None:
    first, second = BucketSchedule([5, 5, 5], 1), BucketSchedule([5, 5, 5], 2)
    assert [first.at(number) for number in range(50)] != [second.at(number) for number in range(50)]


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_a_bucket_of_nothing_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        BucketSchedule(sizes, 0)
