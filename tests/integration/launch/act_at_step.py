"""A progress that acts on the ranks once when a step is reached."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from components.progress import Progress


class ActAtStep(Progress):
    """Calls a function with the process id of each rank, once when the training reaches a step."""

    def __init__(self, step: int, act: Callable[[dict[int, int]], None]) -> None:
        super().__init__(io.StringIO())
        self._step = step
        self._act: Callable[[dict[int, int]], None] | None = act
        self._ranks: dict[int, int] = {}

    def event(self, event: str, **fields: Any) -> None:
        if event == "rank-started":
            self._ranks[fields["rank"]] = fields["pid"]
        elif event == "step" and fields["step"] >= self._step and self._act is not None:
            act, self._act = self._act, None
            act(self._ranks)
