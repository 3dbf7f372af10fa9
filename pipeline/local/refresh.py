"""The report of a run that goes on, written again now and then, so that a browser shows how training gets on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from components.errors import DarkroomError

EVERY_SECONDS = 30.0


class ReportRefresher:
    """Writes the report in a thread, one at a time, and not too often.

    Args:
        write: Writes it.
        clock: Seconds that never go backwards.
        every: Seconds between two reports.
    """

    def __init__(
        self,
        write: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY_SECONDS,
    ) -> None:
        self._write = write
        self._clock = clock
        self._every = every
        self._written_at = clock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: Any) -> None:
        """Wait until no report is being written any more."""
        if self._thread is not None:
            self._thread.join()

    @property
    def has_begun(self) -> bool:
        """Whether any report was begun."""
        return self._thread is not None

    def refresh(self) -> None:
        """Begin to write the report, if the last one is old enough and done."""
        is_busy = self._thread is not None and self._thread.is_alive()
        if is_busy or self._clock() - self._written_at < self._every:
            return
        self._written_at = self._clock()
        self._thread = threading.Thread(target=self._write_quietly, name="report", daemon=True)
        self._thread.start()

    def _write_quietly(self) -> None:
        with contextlib.suppress(DarkroomError):  # the next one may succeed; the last one is written by itself
            self._write()
