"""A launcher's listener that strikes at its ranks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from components.progress import Progress


class Saboteur(Progress):
    """Hears what the launcher tells, and strikes once when a step is reached."""

    def __init__(self, step: int, strike: Callable[[dict[int, int]], None]) -> None:
        super().__init__(io.StringIO())
        self._step = step
        self._strike: Callable[[dict[int, int]], None] | None = strike
        self._ranks: dict[int, int] = {}

    def event(self, event: str, **fields: Any) -> None:
        if event == "rank-started":
            self._ranks[fields["rank"]] = fields["pid"]
        elif event == "step" and fields["step"] >= self._step and self._strike is not None:
            strike, self._strike = self._strike, None
            strike(self._ranks)
