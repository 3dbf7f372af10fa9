"""Prepares a curve of many steps for drawing: smooths it, and thins it to as many points as a page can show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Point(NamedTuple):
    """A value after an optimizer step."""

    step: int
    value: float


def smooth(points: Sequence[Point], half_life: float) -> list[Point]:
    """Return each value's average with its neighbours on both sides, so that the curve does not lag behind.

    Args:
        points: In order of their steps.
        half_life: Steps away at which a neighbour weighs half as much as the value itself; 0 averages nothing.
    """
    forth = _weighted(points, half_life)
    back = _weighted(points[::-1], half_life)[::-1]
    # Both passes count the value itself.
    return [
        Point(step, (before + after - value) / (weight + other - 1.0))
        for (step, value), (before, weight), (after, other) in zip(points, forth, back, strict=True)
    ]


def _weighted(points: Sequence[Point], half_life: float) -> list[tuple[float, float]]:
    """Return for each point the weighted sum of the values up to it, and the sum of their weights."""
    result: list[tuple[float, float]] = []
    total = weight = 0.0
    before = points[0].step if points else 0
    for step, value in points:
        keep = 0.5 ** (abs(step - before) / half_life) if half_life > 0 else 0.0
        total, weight, before = keep * total + value, keep * weight + 1.0, step
        result.append((total, weight))
    return result


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """Return at most ``limit`` points that draw the same curve: the lowest and highest of each stretch."""
    if len(points) <= limit:
        return list(points)
    stretches = max(limit // 2, 1)
    kept: list[Point] = []
    for index in range(stretches):
        stretch = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        low, high = min(stretch, key=lambda point: point.value), max(stretch, key=lambda point: point.value)
        kept.extend(sorted({low, high}))
    return kept


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return at most ``limit`` items, evenly spread; the last is always among them, and the first if two fit."""
    if len(items) <= limit:
        return list(items)
    if limit == 1:
        return [items[-1]]
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]
