"""Every second of the loop belongs to one thing, and rates are over exactly the steps that were added."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.train.metrics.throughput import Lap, Stopwatch, Throughput

seconds = st.floats(0, 1e4)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, length: float) -> None:
        self.now += length


def test_a_step_is_what_is_left_between_two_others() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def batches() -> list[str]:
        return ["a", "b"]

    def slowly() -> Iterator[str]:
        for batch in batches():
            clock.passes(0.25)
            yield batch

    laps = []
    for _ in watch.waiting(slowly()):
        clock.passes(1.0)
        laps.append(watch.lap())
        clock.passes(0.5)  # telling of a step belongs to the next one
        with watch.stalled():
            clock.passes(2.0)
        with watch.apart() as spent:
            clock.passes(4.0)
        assert spent.seconds == 4.0

    assert [asdict(lap) for lap in laps] == [
        {"seconds": 1.25, "data_wait": 0.25, "stall": 0.0},
        {"seconds": 1.75, "data_wait": 0.25, "stall": 2.0},
    ]


def test_what_fails_is_measured_all_the_same() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with contextlib.suppress(ValueError), watch.apart():
        clock.passes(3.0)
        raise ValueError("no")
    clock.passes(1.0)
    assert watch.lap().seconds == 1.0


@given(st.lists(st.tuples(seconds, seconds, seconds, seconds), max_size=8))
def test_steps_and_what_is_apart_add_up_to_the_clock(rounds: list[tuple[float, float, float, float]]) -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    total = 0.0
    for work, telling, stall, pause in rounds:
        clock.passes(work)
        total += watch.lap().seconds
        clock.passes(telling)
        with watch.stalled() as stalled:
            clock.passes(stall)
        with watch.apart() as apart:
            clock.passes(pause)
        total += stalled.seconds + apart.seconds
    total += watch.lap().seconds
    assert total == pytest.approx(clock.now - 100.0)


def test_speed_is_over_all_that_was_added() -> None:
    throughput = Throughput(peak=1000.0)
    throughput.add(Lap(seconds=1.0, data_wait=0.5, stall=0.0), samples=10, flops=400.0)
    throughput.add(Lap(seconds=3.0, data_wait=0.5, stall=1.0), samples=10, flops=400.0)

    assert asdict(throughput.speed()) == {
        "samples_per_second": 5.0,
        "mfu": 0.2,
        "data_wait_share": 0.25,
        "checkpoint_stall_share": 0.2,
    }


@pytest.mark.parametrize(("peak", "flops"), [(None, 400.0), (1000.0, 0.0)])
def test_without_a_peak_or_a_count_there_is_no_utilization(peak: float | None, flops: float) -> None:
    throughput = Throughput(peak)
    throughput.add(Lap(1.0, 0.0, 0.0), samples=1, flops=flops)
    assert throughput.speed().mfu is None


def test_nothing_added_is_no_speed() -> None:
    assert Throughput(None).speed().samples_per_second == 0.0
