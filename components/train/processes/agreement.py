"""One decision on all ranks: after which step to stop. It travels in the all-reduce that adds up the loss anyway."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from components.processes.stopping import Stopping

# Reading a sum back makes the host wait for the GPU, which then idles until the next step is launched: some
# milliseconds, which do not matter for a step this long, while one more step after a notice does.
_LATE_BELOW_SECONDS = 1.0


class Agreed(NamedTuple):
    """What all ranks agree on after one step.

    Attributes:
        step: The optimizer step.
        loss: The mean loss of its global batch.
        stop: Whether any rank had been asked to stop by its end.
        facts: What this rank noted of the step when it posted it.
    """

    step: int
    loss: float
    stop: bool
    facts: Mapping[str, float]


class _Posted(NamedTuple):
    step: int
    facts: Mapping[str, float]
    sums: Tensor  # [2 or 3] float64 on the host: the loss, ranks asked to stop, seconds of the step where they matter
    wait: Callable[[], object]  # returns once the sums are there


class Agreement:
    """Adds up the ranks' values of each step, so that all of them stop after the same one.

    On CPUs each step's sums are read at once. On GPUs those of short steps are read while the next step runs, so that
    the device never waits for the host: a request then stops the ranks one step later. When to read follows from the
    sums themselves and from the step's number, so every rank does the same.

    Args:
        stopping: The requests to stop that this rank has received.
        device: The device of tensors that ranks exchange.
        late_below: Mean seconds of a step below which its sums are read one step late.
        clock: Seconds that never go backwards.
    """

    def __init__(
        self,
        stopping: Stopping,
        device: torch.device,
        late_below: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stopping = stopping
        self._device = device
        default = _LATE_BELOW_SECONDS if device.type == "cuda" else 0.0
        self._late_below = default if late_below is None else late_below
        self._clock = clock
        self._last = clock()
        self._mean_seconds = inf
        self._posted: deque[_Posted] = deque()

    def reach(
        self, step: int, loss_share: float | Tensor, facts: Mapping[str, float], at_once: bool = False
    ) -> list[Agreed]:
        """Post this rank's part of a step and return what is agreed by now; every rank calls it after every step.

        Args:
            step: The step that was just taken.
            loss_share: This rank's part of the mean loss: a number, or a tensor on the device, without waiting for it.
            facts: Noted beside it, and returned with it.
            at_once: Whether to wait for this very step, as before a checkpoint; the same on every rank.

        Returns:
            The steps that were not returned before, oldest first; up to this one if any of them says to stop.
        """
        self._stopping.begin()
        self._posted.append(self._post(step, loss_share, facts))
        agreed: list[Agreed] = []
        while self._posted and (at_once or len(self._posted) > 1 or self._mean_seconds >= self._late_below):
            agreed.append(self._read(self._posted.popleft()))
            at_once = at_once or agreed[-1].stop
        return agreed

    def _post(self, step: int, loss_share: float | Tensor, facts: Mapping[str, float]) -> _Posted:
        now = self._clock()
        seconds, self._last = now - self._last, now
        numbers = [0.0, float(self._stopping.is_requested), *([seconds] if self._late_below > 0 else [])]
        sums = torch.tensor(numbers, dtype=torch.float64)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            sums = sums.pin_memory().to(self._device, non_blocking=True)
        sums[0] += loss_share
        work = torch.distributed.all_reduce(sums, async_op=True)
        assert work is not None
        if not on_gpu:
            return _Posted(step, facts, sums, work.wait)
        work.wait()  # which makes the stream wait, not the host
        sums = sums.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return _Posted(step, facts, sums, copied.synchronize)

    def _read(self, posted: _Posted) -> Agreed:
        posted.wait()
        loss, asked, *seconds = posted.sums.tolist()
        if seconds:
            self._mean_seconds = seconds[0] / torch.distributed.get_world_size()
        if asked > 0:
            self._stopping.follow()
        return Agreed(posted.step, loss, asked > 0, posted.facts)
