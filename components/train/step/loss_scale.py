"""The factor of fp16 losses that keeps small gradients from vanishing.

Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv:1710.03740, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

_FIRST = 2.0**16
_GROWS_AFTER = 1000


@dataclass(frozen=True)
class LossScale:
    """A power of two that halves if a gradient overflows and doubles after many steps without overflow.

    It depends on which steps overflowed, so it is part of the state in checkpoints.

    Attributes:
        value: Factor of the loss, by which the gradient is divided.
        steady: Steps since it last changed.
    """

    value: float = _FIRST
    steady: int = 0

    def after(self, overflowed: bool) -> LossScale:
        """Return the scale for the next step."""
        if overflowed:
            return LossScale(max(1.0, self.value / 2))
        if self.steady + 1 == _GROWS_AFTER:
            return LossScale(self.value * 2)
        return LossScale(self.value, self.steady + 1)
