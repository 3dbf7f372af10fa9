"""How a training stops early: a signal on any rank, one decision on all."""

from __future__ import annotations

import signal
from types import FrameType

import torch


class Stopping:
    """Notes SIGTERM and SIGINT, and agrees with the other ranks on the step to stop at."""

    def __init__(self) -> None:
        self._asked = False

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT of this process."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def agree(self, loss_share: float, device: torch.device) -> tuple[float, bool]:
        """Add up the ranks' parts of the loss and learn whether any rank was asked to stop.

        Both travel in one all-reduce, which reporting the loss needs anyway, so agreeing costs nothing.

        Returns:
            The mean loss of the global batch, and whether to stop after this step: the same on every rank.
        """
        told = torch.tensor([loss_share, float(self._asked)], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(told)
        return float(told[0]), bool(told[1] > 0)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
