from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from components.train.data.batches import accumulation, expected_shards, micro_batches

sizes = st.integers(1, 200)


@given(global_batch=sizes, world=st.integers(1, 17), micro_batch=st.integers(1, 40))
def test_every_place_is_taken_once_and_all_ranks_run_as_often(global_batch: int, world: int, micro_batch: int) -> None:
    parts = [micro_batches(global_batch, world, rank, micro_batch) for rank in range(world)]
    assert [position for rank in parts for part in rank for position in part] == list(range(global_batch))
    assert {len(rank) for rank in parts} == {accumulation(global_batch, world, micro_batch)}
    assert max(len(part) for rank in parts for part in rank) <= micro_batch


@given(global_batch=sizes, world=st.integers(1, 17), micro_batch=st.integers(1, 40))
def test_with_one_micro_batch_less_a_rank_would_have_too_large_ones(
    global_batch: int, world: int, micro_batch: int
) -> None:
    count, largest_share = accumulation(global_batch, world, micro_batch), -(-global_batch // world)
    assert (count - 1) * micro_batch < largest_share <= count * micro_batch


@given(global_batch=sizes, world=st.integers(1, 17))
def test_ranks_are_as_equal_as_can_be(global_batch: int, world: int) -> None:
    shares = [sum(len(part) for part in micro_batches(global_batch, world, rank, 8)) for rank in range(world)]
    assert max(shares) - min(shares) <= 1


@given(shards=st.permutations(range(100, 140)), world=st.integers(1, 60))
def test_a_rank_expects_its_share_of_a_window_and_a_shard_on_either_side(shards: list[int], world: int) -> None:
    ordered = sorted(shards)
    for rank in range(world):
        expected = expected_shards(shards, rank, world)
        share = [
            shard
            for place, shard in enumerate(ordered)
            if place < (rank + 1) * 40 / world and place + 1 > rank * 40 / world
        ]
        assert set(share) <= set(expected)
        assert expected == ordered[ordered.index(expected[0]) :][: len(expected)]
        assert len(expected) <= len(share) + 2


def test_ranks_of_equal_shards_expect_what_is_written_here() -> None:
    assert [expected_shards([7, 5, 6, 4], rank, 4) for rank in range(4)] == [[4, 5], [4, 5, 6], [5, 6, 7], [6, 7]]
    assert expected_shards([3, 1, 2], 0, 1) == [1, 2, 3]
