"""Progress of a step, from one call: bars on a terminal, one JSON line per event in a pod.

Each JSON line begins with ``event``, so that a reader of the log (``darkroom run``, a log collector) can tell it from
lines that libraries print.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from components.errors import without_credentials

T = TypeVar("T")


class Progress:
    """Reports events and the progress of long loops.

    Args:
        stream: Where to write; None for standard output.
        clock: Returns seconds that never go backwards; limits how often a loop reports.
        every: Seconds between two reports of one loop.
    """

    def __init__(
        self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic, every: float = 0.5
    ) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._clock = clock
        self._every = every
        self._console = Console(file=self._stream, highlight=False) if self._stream.isatty() else None

    def event(self, event: str, **fields: Any) -> None:
        """Report an event; ``fields`` are JSON values."""
        if self._console is not None:
            text = without_credentials("  ".join(f"{name}={value}" for name, value in fields.items()))
            self._console.print(f"{event:>12}  {text}", markup=False, soft_wrap=True)
        else:
            self._stream.write(without_credentials(json.dumps({"event": event, **fields})) + "\n")
            self._stream.flush()

    def track(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        """Yield ``items`` and show how many of ``total`` are done.

        Args:
            items: The items of the loop.
            what: What they are, such as ``images encoded``.
            total: How many there are.
        """
        return self._bar(items, what, total) if self._console is not None else self._lines(items, what, total)

    def _bar(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        columns = (
            TextColumn("{task.description:>24}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            yield from bars.track(items, total=total, description=what)

    def _lines(self, items: Iterable[T], what: str, total: int) -> Iterator[T]:
        last_report = self._clock()
        for count, item in enumerate(items, start=1):
            yield item
            if self._clock() - last_report >= self._every or count == total:
                last_report = self._clock()
                self.event("progress", what=what, done=count, total=total)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.3g}/s")
