"""The progress of a training that runs elsewhere, read from its event and metrics files while they grow."""

from __future__ import annotations

from typing import Any

from components.errors import NotFound, StorageError
from components.progress import Progress
from components.storage.base import Storage
from pipeline.launch.books.accounting import EVENTS, METRICS, parse_lines

_MAX_BYTES = 1 << 20


class RunTail:
    """Reports what is appended to a run's events and metrics from now on, as if it happened here.

    Args:
        run: The run's folder.
        steps: Number of optimizer steps.
        progress: Receives the events, and a ``step`` for the newest metrics.
    """

    def __init__(self, run: Storage, steps: int, progress: Progress) -> None:
        self._run = run
        self._steps = steps
        self._progress = progress
        self._offsets = {key: self._size(key) for key in (EVENTS, METRICS)}

    def report(self) -> None:
        """Report what was appended since the last call; if the storage is unreachable, the next call does."""
        try:
            for event in self._new_lines(EVENTS):
                fields = {name: value for name, value in event.items() if name not in ("time", "event")}
                self._progress.event(str(event.get("event")), **fields)
            steps = self._new_lines(METRICS)
        except StorageError:
            return
        if steps:
            newest = {name: steps[-1].get(name) for name in ("step", "loss")}
            self._progress.event("step", **newest, steps=self._steps)

    def _new_lines(self, key: str) -> list[dict[str, Any]]:
        size, offset = self._size(key), self._offsets[key]
        if size < offset:  # a resumed training removes the lines of the steps that it repeats
            self._offsets[key] = size
            return []
        if size == offset:
            return []
        start = max(offset, size - _MAX_BYTES)
        data = self._run.read(key, start)
        whole_lines = data[: data.rfind(b"\n") + 1]
        self._offsets[key] = start + len(whole_lines)
        return list(parse_lines(whole_lines))

    def _size(self, key: str) -> int:
        try:
            return self._run.entry(key).size
        except NotFound:
            return 0
