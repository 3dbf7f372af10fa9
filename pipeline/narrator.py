"""What a person sees while the pipeline runs on this machine: a line per step, bars for long loops, a closing table.

Steps run in processes of their own and tell what they do as JSON lines on standard output; everything else that they
and Kubeflow print goes into a log file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_START = '{"event":'
_QUIET = {"progress", "step", "step-started", "step-ended", "done", "rank-started", "training"}


class Narrator(io.TextIOBase):
    """A text stream to print to in place of standard output; finds the events in it and shows them.

    Args:
        console: Where to show them.
        log: File that gets every line as it is.
    """

    def __init__(self, console: Console, log: Path) -> None:
        self._console = console
        self._log = log.open("a", encoding="utf-8", errors="replace")
        self._buffer = ""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def writable(self) -> bool:
        """Say that this stream is for writing."""
        return True

    def write(self, text: str) -> int:
        """Take what is printed; whole lines are searched for events."""
        *lines, self._buffer = (self._buffer + text).split("\n")
        for line in lines:
            self._log.write(line + "\n")
            for event in events(line):
                self._show(event)
        return len(text)

    def flush(self) -> None:
        """Bring the log to disk."""
        if not self._log.closed:
            self._log.flush()

    def close(self) -> None:
        """Take the bars off the screen and close the log."""
        if not self._log.closed:
            self._bars.stop()
            self._log.close()
        super().close()

    def _show(self, event: dict[str, Any]) -> None:
        name = event.pop("event")
        if name == "progress":
            self._advance(event["what"], event["done"], event["total"])
        elif name == "step":
            self._advance("training steps", event["step"], event["steps"], f"loss {event['loss']:.3f}")
        elif name == "step-started":
            self._console.print(f"[bold]{_title(event)}[/bold]", highlight=False)
        elif name == "step-ended":
            self._drop_bars()
            mark = "[green]done[/green]" if event["status"] == "done" else "[red]failed[/red]"
            self._console.print(f"  {_title(event)}: {mark} in {event['seconds']:.1f} s", highlight=False)
        elif name not in _QUIET:
            told = ", ".join(
                f"{key.replace('_', ' ')} {value}" for key, value in event.items() if value not in ("", [])
            )
            self._console.print(f"  {name}: {told}", highlight=False, markup=False)

    def _advance(self, what: str, done: int, total: int, told: str = "") -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, told=told)
        self._bars.update(self._tasks[what], completed=done, total=total, told=told)

    def _drop_bars(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}


def events(line: str) -> Iterator[dict[str, Any]]:
    """Yield the events in a line; two steps that print at once can share one."""
    decoder = json.JSONDecoder()
    at = line.find(_START)
    while at >= 0:
        try:
            event, end = decoder.raw_decode(line, at)
        except ValueError:
            end = at + 1
        else:
            yield event
        at = line.find(_START, end)


def closing_table(numbers: Mapping[str, Any]) -> Table:
    """Return what a finished run amounts to; ``numbers`` are those of ``report.json``."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in _closing_rows(numbers):
        table.add_row(name, text)
    return table


def _closing_rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def number(key: str, form: str = "{}") -> str:
        value = numbers.get(key)
        return "–" if value is None else form.format(value)

    yield "images", f"{number('images')} ({number('encoded')} encoded now, {number('rejected')} rejected)"
    yield (
        "training",
        (
            f"{number('steps')} steps, {number('preemptions')} preemptions, {number('steps_lost')} steps lost, "
            f"goodput {number('goodput', '{:.0%}')}"
        ),
    )
    yield "speed", number("samples_per_second", "{:.0f} samples/s")
    yield "prompt accuracy", number("prompt_accuracy", "{:.3f}")
    yield (
        "Fréchet distance",
        (f"{number('frechet_distance', '{:.3g}')} (two sets of real images: {number('frechet_reference', '{:.3g}')})"),
    )
    yield "published", number("published")


def _title(event: Mapping[str, Any]) -> str:
    return event["step"] if event.get("group") is None else f"{event['step']} {event['group']}"
