"""Who captions what: batches are the same however many processes share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return the items in batches of a size, in order; the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def share(parts: Sequence[T], rank: int, world: int) -> list[T]:
    """Return the parts of one process: every ``world``-th, so that all come to an end at about the same time.

    Args:
        parts: What there is to do.
        rank: The process, from 0.
        world: How many processes there are.
    """
    return list(parts[rank::world])
