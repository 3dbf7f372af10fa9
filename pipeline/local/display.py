"""What a person sees while the pipeline runs on this machine: a line per step, bars for long loops, a closing table.

On a terminal, each running step has a bar at the bottom of the screen. Elsewhere there are only lines, one now and
then for a step that takes long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from components.errors import Preempted
from components.html.formatting import number
from pipeline.messages import closing_rows, count, duration, event_line, line, step_summary, title

Event = Mapping[str, Any]

_START = '{"event":'
# Columns of a terminal that is 80 wide; the rest is for what is done.
_NAME, _TIME, _BAR = 11, 10, 12
_GAPS = 3
# Seconds of a loop before its rate says anything.
_FIRST_RATE = 3.0
# Where a line may be of any length.
_WIDE = 1000


@dataclass
class _Step:
    """A step that is running.

    Attributes:
        bar: Its bar.
        started: When it was started, on the display's clock.
        last_line: When a line was last shown of it, on the same clock.
        events: The newest event of each kind, by the kind's name.
        loop: What its present loop counts; empty before the first.
        loop_from: How much was done when that loop was first heard of, and when, on the same clock.
    """

    bar: TaskID
    started: float
    last_line: float
    events: dict[str, Event] = field(default_factory=dict)
    loop: str = ""
    loop_from: tuple[int, float] = (0, 0.0)

    def pace(self, what: str, done: int, total: int, now: float) -> list[str]:
        """Return how fast a loop is and how long it will take; nothing if that cannot be said yet."""
        if what != self.loop or done < self.loop_from[0]:
            self.loop, self.loop_from = what, (done, now)
        first, since = self.loop_from
        if now - since < _FIRST_RATE or done <= first:
            return []
        rate = (done - first) / (now - since)
        left = [f"{duration((total - done) / rate)} left"] if done < total else []
        return [f"{number(rate)}/s" if rate >= 0.1 else f"{duration(1 / rate)} each", *left]


class RunDisplay:
    """Shows a person how the steps of a run get on.

    Args:
        console: The terminal or file.
        clock: Seconds that never go backwards.
        every: Seconds between two lines of one long loop, if there are no bars.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic, every: float = 60.0) -> None:
        self._console = console
        self._clock = clock
        self._every = every
        self._running: dict[str, _Step] = {}
        self._has_failed = False
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=_NAME, no_wrap=True)),
            _Elapsed(table_column=Column(min_width=_TIME, no_wrap=True, justify="right")),
            BarColumn(bar_width=_BAR, table_column=Column(min_width=_BAR)),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            get_time=clock,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def print_line(self, text: str, style: str = "") -> None:
        """Show a line that is not of a step; it is never broken, so that a path in it can be copied."""
        self._console.print(Text(text, style), soft_wrap=True)

    def show(self, event: Event) -> None:
        """Show one event."""
        match event["event"]:
            case "step-started":
                self._start(title(event))
            case "step-ended":
                self._end(event)
            case "progress":
                self._advance(event, event["done"], event["total"], event["what"])
            case "step":
                loss = event.get("loss")  # null if it was not finite
                more = [] if loss is None else [f"loss {loss:.3f}"]
                self._advance(event, event["step"], event["steps"], "steps", more)
            case _:
                self._show_other(event)

    def close(self, numbers: Mapping[str, Any], seconds: Mapping[str, float], total: float) -> None:
        """Show the closing table; see `pipeline.messages.closing_rows`."""
        self.print_line("")
        for name, text in closing_rows(numbers, seconds, total):
            self.print_line(f"{name:<17} {text}")

    def _start(self, name: str) -> None:
        now = self._clock()
        self._running[name] = _Step(self._bars.add_task(name, total=None, text="starting"), now, now)

    def _end(self, event: Event) -> None:
        name = title(event)
        step = self._running.pop(name, None)
        if step is not None:
            self._bars.remove_task(step.bar)
            self._bars.refresh()
        if event["status"] == "done":
            events = step.events if step is not None else {}
            self._line(name, event["seconds"], step_summary(event["step"], event["result"], events), "green")
        elif event["exit_code"] == Preempted.exit_code:
            self._line(name, event["seconds"], f"stopped: {line(event['error'])}", "yellow")
        else:
            # What ended the run first is said in full at its end.
            self._line(
                name, event["seconds"], f"failed: {line(event['error'])}" if self._has_failed else "failed", "red"
            )
            self._has_failed = True

    def _advance(self, event: Event, done: int, total: int, what: str, more: Sequence[str] = ()) -> None:
        step = self._running.get(event["by"])
        if step is None:
            return
        step.events[event["event"]] = event
        parts = [f"{count(done)}/{count(total)} {what}", *step.pace(what, done, total, self._clock()), *more]
        room = self._console.width - _NAME - _TIME - _BAR - _GAPS if self._console.is_terminal else _WIDE
        while len(text := ", ".join(parts)) > room and len(parts) > 1:
            parts.pop()
        self._bars.update(step.bar, completed=done, total=total, text=text)
        if not self._console.is_terminal and self._clock() - step.last_line >= self._every:
            self._intermediate_line(event["by"], step, text)

    def _show_other(self, event: Event) -> None:
        step = self._running.get(event.get("by", ""))
        if step is None:
            return
        step.events[event["event"]] = event
        if event["event"] == "attempt-ended":
            self._bars.update(step.bar, text="starting again")
            step.loop = ""
        text = event_line(event)
        if text is not None:
            self._intermediate_line(event["by"], step, text)

    def _intermediate_line(self, name: str, step: _Step, text: str) -> None:
        step.last_line = self._clock()
        self._line(name, step.last_line - step.started, f"· {text}", "dim")

    def _line(self, name: str, seconds: float, text: str, style: str) -> None:
        parts = Text.assemble((f"{name:<{_NAME}}", style), f" {duration(seconds):>{_TIME}}  {text}")
        if self._console.is_terminal:
            self._console.print(parts, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(parts, soft_wrap=True)


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(duration(task.elapsed or 0.0))


def read_event(text: str) -> dict[str, Any] | None:
    """Return the event that a line holds, or None if it holds anything else as well: then no step wrote it."""
    if not text.lstrip().startswith(_START):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event.get("by"), str) else None
