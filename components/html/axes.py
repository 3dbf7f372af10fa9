"""Axes: where a drawing places numbers and ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

# Steps of a time axis that people read easily, in seconds.
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from ``low`` to ``high``, drawn from ``start`` to ``end`` (in drawing units)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the position of a value; values beyond the axis lie at its ends."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Return round values on the axis, roughly ``about`` of them."""
        return log_ticks(self.low, self.high, about) if self.log else linear_ticks(self.low, self.high, about)

    def labelled(self, about: int) -> list[tuple[float, str]]:
        """Return the ticks with their text."""
        ticks = self.ticks(about)
        labels = [f"{tick:,g}" for tick in ticks] if self.log else tick_labels(ticks)
        return list(zip(ticks, labels, strict=True))

    def _scaled(self, value: float) -> float:
        return math.log(max(value, self.low)) if self.log else value


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``."""
    if not high - low > 1e-300:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / max(about, 1)))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    return _multiples(low, high, min(steps, key=lambda step: abs((high - low) / step - about)))


def log_ticks(low: float, high: float, about: int) -> list[float]:
    """Return powers of ten from ``low`` to ``high``, with their 2- and 5-fold if there are few powers."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: max(1, round(len(ticks) / max(about, 1)))]
    return linear_ticks(low, high, about)


def time_ticks(seconds: float, about: int) -> list[float]:
    """Return round times from 0 to ``seconds``."""
    rough = seconds / max(about, 1)
    days = 86_400 * max(1, math.ceil(rough / 86_400))
    return _multiples(0, seconds, next((step for step in _TIME_STEPS if step >= rough), days))


def tick_labels(ticks: list[float]) -> list[str]:
    """Return the ticks as text with as many decimals as tell neighbours apart."""
    gaps = [abs(after - before) for before, after in pairwise(ticks)]
    smallest = min([gap for gap in gaps if gap > 0], default=1.0)
    if smallest < 1e-3 or max(map(abs, ticks), default=0) >= 1e6:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(smallest) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
