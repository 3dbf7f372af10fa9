"""The log of a run on this machine, ``pipeline.log``, as lines for a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from components.errors import ConfigError
from pipeline.local.display import read_event
from pipeline.local.runs import LocalRun
from pipeline.messages import PrintLine, event_line, line

LOG = "pipeline.log"
_POLL_SECONDS = 0.5


def show_log(
    run: LocalRun,
    step: str,
    lines: int,
    follow: bool,
    is_running: Callable[[], bool],
    print_line: PrintLine,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Show the last lines of a run's log, and if asked to, the lines to come.

    Args:
        run: The run.
        step: Only what this step reported; empty: everything.
        lines: How many last lines.
        follow: Whether to go on until the run has ended.
        is_running: Returns whether it has not.
        print_line: Shows a line.
        sleep: Waits so many seconds.

    Raises:
        ConfigError: If there is no log.
    """
    path = run.folder.local_path(LOG)
    if path is None:
        if not run.folder.exists(LOG):
            raise ConfigError(f"{run.name} has no log in {run.workdir.url} yet: it is written there once the run ends")
        for text in _shown(run.folder.read(LOG).decode(errors="replace").splitlines(), step)[-lines:]:
            print_line(text)
        return
    if not path.is_file():
        raise ConfigError(f"{run.name} has no log ({path}): it was not run on this machine, or has not begun")
    _tail(path, step, lines, follow, is_running, print_line, sleep)


def _tail(
    path: Path,
    step: str,
    lines: int,
    follow: bool,
    is_running: Callable[[], bool],
    print_line: PrintLine,
    sleep: Callable[[float], object],
) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in _shown(file.read().splitlines(), step)[-lines:] if lines > 0 else []:
            print_line(text)
        rest = ""
        while follow:
            is_last = not is_running()  # asked before reading, so that nothing is missed
            *whole, rest = (rest + file.read()).split("\n")
            for text in _shown(whole, step):
                print_line(text)
            if is_last:
                return
            sleep(_POLL_SECONDS)


def _shown(texts: list[str], step: str) -> list[str]:
    return [shown for text in texts for shown in _line(text, step)]


def _line(text: str, step: str) -> Iterator[str]:
    """Yield the line for a line of the log: what an event says, or the line itself."""
    event = read_event(text)
    if event is None:
        if not step and text.strip():
            yield line(text)
        return
    by = event["by"]
    if step and by.split()[0] != step:
        return
    message = _event_text(event)
    if message is not None:
        yield line(f"{by:<11} {message}")


def _event_text(event: dict[str, object]) -> str | None:
    match event["event"]:
        case "step-started":
            return "begins"
        case "step-ended":
            return f"{event.get('status')}{': ' + str(event['error']) if event.get('error') else ''}"
        case "progress":
            return f"{event.get('done')}/{event.get('total')} {event.get('what')}"
        case "step":
            loss = event.get("loss")  # null if it was not finite
            more = f", loss {loss:.3f}" if isinstance(loss, int | float) else ""
            return f"step {event.get('step')}/{event.get('steps')}{more}"
    try:
        return event_line(event)
    except (KeyError, TypeError):
        return str(event["event"])
