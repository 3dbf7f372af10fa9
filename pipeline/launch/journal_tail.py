"""What a training elsewhere tells, read from the run's folder while it grows."""

from __future__ import annotations

import json
from typing import Any

from components.errors import NotFound, StorageError
from components.progress import Progress
from components.storage.base import Storage
from pipeline.launch.accounting import EVENTS, METRICS

_MOST_BYTES = 1 << 20


class Tail:
    """Follows the run's events and metrics, from where they end now, and tells them as if they happened here.

    Args:
        run: The run's folder.
        steps: Optimizer steps in all.
        progress: Told the events, and a ``step`` for the newest metrics.
    """

    def __init__(self, run: Storage, steps: int, progress: Progress) -> None:
        self._run = run
        self._steps = steps
        self._progress = progress
        self._ends = {key: self._size(key) for key in (EVENTS, METRICS)}

    def tell(self) -> None:
        """Tell what has come since this was last called; a store that is away is asked again next time."""
        try:
            for event in self._new(EVENTS):
                told = {name: value for name, value in event.items() if name not in ("time", "event")}
                self._progress.event(str(event.get("event")), **told)
            steps = self._new(METRICS)
        except StorageError:
            return
        if steps:
            line = {name: steps[-1].get(name) for name in ("step", "loss")}
            self._progress.event("step", **line, steps=self._steps)

    def _new(self, key: str) -> list[dict[str, Any]]:
        size = self._size(key)
        begin = self._ends[key]
        if size < begin:  # a resumed training takes off what it will do again
            self._ends[key] = size
            return []
        if size == begin:
            return []
        start = max(begin, size - _MOST_BYTES)
        data = self._run.read(key, start)
        whole = data[: data.rfind(b"\n") + 1]
        self._ends[key] = start + len(whole)
        return [found for line in whole.split(b"\n") if (found := _parsed(line)) is not None]

    def _size(self, key: str) -> int:
        try:
            return self._run.entry(key).size
        except NotFound:
            return 0


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
