"""What a step tells while it works: bars on a terminal, one JSON line per event in a pod, from one call.

Each JSON line has ``event`` first, so that whoever reads a mixed log (``darkroom run``, a log collector) can tell
the lines apart from what libraries print.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


class Progress:
    """Reports events and the advance of long loops.

    Args:
        stream: Where to write; standard output unless given.
        clock: Seconds that never go backwards, to pace the JSON lines of a loop.
        every: Seconds between two JSON lines of one loop.
    """

    def __init__(
        self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic, every: float = 0.5
    ) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._clock = clock
        self._every = every
        self._console = Console(file=self._stream, highlight=False) if self._stream.isatty() else None

    def event(self, event: str, **fields: Any) -> None:
        """Tell one thing that happened; ``fields`` are JSON values."""
        if self._console is not None:
            told = "  ".join(f"{name}={value}" for name, value in fields.items())
            self._console.print(f"{event:>12}  {told}", markup=False, soft_wrap=True)
        else:
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
            self._stream.flush()

    def track(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Yield ``items`` and show how many of ``total`` are done; ``what`` names them, such as ``images encoded``."""
        return self._bar(items, what, total) if self._console is not None else self._lines(items, what, total)

    def _bar(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        columns = (TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self._console, transient=True) as bars:
            yield from bars.track(items, total=total, description=what)

    def _lines(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        told = self._clock()
        for done, item in enumerate(items, start=1):
            yield item
            if self._clock() - told >= self._every or done == total:
                told = self._clock()
                self.event("progress", what=what, done=done, total=total)
