"""Where a training's time goes: a stopwatch over the loop, and rates over several steps; the clock is passed in.

Every second of the loop belongs to one thing. A step lasts from the end of the step before to its own end, less what
was measured apart in between: checkpoints, validation, sample images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Interval:
    """A part of the loop's time; ``seconds`` is set when it is over."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Lap:
    """One step's time.

    Attributes:
        seconds: All of it, in seconds.
        data_wait: How much of that this rank waited for its batch, in seconds.
        stall: How long training stood still for a checkpoint since the step before, in seconds; not in ``seconds``.
    """

    seconds: float
    data_wait: float
    stall: float


class Stopwatch:
    """Divides the loop's time.

    Args:
        clock: Seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._apart = self._data_wait = self._stall = 0.0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield ``batches`` and count how long each let the loop wait."""
        source = iter(batches)
        while True:
            began = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._data_wait += self._clock() - began
            yield batch

    @contextmanager
    def apart(self) -> Iterator[Interval]:
        """Measure something that is not part of a step."""
        began = self._clock()
        interval = Interval()
        try:
            yield interval
        finally:
            interval.seconds = self._clock() - began
            self._apart += interval.seconds

    @contextmanager
    def stalled(self) -> Iterator[Interval]:
        """Measure what training stands still for while a checkpoint is copied."""
        with self.apart() as interval:
            yield interval
        self._stall += interval.seconds

    def lap(self) -> Lap:
        """End a step."""
        now = self._clock()
        lap = Lap(now - self._since - self._apart, self._data_wait, self._stall)
        self._since, self._apart, self._data_wait, self._stall = now, 0.0, 0.0, 0.0
        return lap


@dataclass(frozen=True)
class Speed:
    """How fast training is, and what holds it up.

    Attributes:
        samples_per_second: Over all ranks.
        mfu: Model FLOPs utilization, 0..1; None if the device's peak is unknown.
        data_wait_share: Share of the time in which rank 0 waited for data.
        checkpoint_stall_share: Share of the time in which training stood still for checkpoints.
    """

    samples_per_second: float
    mfu: float | None
    data_wait_share: float
    checkpoint_stall_share: float


class Throughput:
    """Adds up steps and computes their speed.

    Args:
        peak: FLOP/s of all ranks' devices together; None if unknown.
    """

    def __init__(self, peak: float | None) -> None:
        self._peak = peak
        self._samples = self._flops = self._seconds = self._data_wait = self._stall = 0.0

    def add(self, lap: Lap, samples: float, flops: float) -> None:
        """Count a step of ``samples`` samples and ``flops`` floating-point operations."""
        self._samples += samples
        self._flops += flops
        self._seconds += lap.seconds
        self._data_wait += lap.data_wait
        self._stall += lap.stall

    def speed(self) -> Speed:
        """Return the speed over all that was added."""
        seconds = max(self._seconds, 1e-9)  # a clock may be coarser than a step
        return Speed(
            samples_per_second=self._samples / seconds,
            mfu=self._flops / seconds / self._peak if self._peak and self._flops else None,
            data_wait_share=self._data_wait / seconds,
            checkpoint_stall_share=self._stall / (seconds + self._stall),
        )
