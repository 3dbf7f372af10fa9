"""One child process under watch: what it prints line by line, and a tidy end when this process is asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import FrameType
from typing import IO

# Lines, the numbers of signals, and None once the child has closed its output. Only a SimpleQueue may be put into
# from a signal handler. SIGKILL, which no process hears of, may be put in to kill the child at once.
Inbox = SimpleQueue[str | int | None]


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    busy: Callable[[], bool],
    on_stop: Callable[[], None],
    inbox: Inbox | None = None,
) -> tuple[int, bool]:
    """Run a command and everything that it starts, as a group apart from the terminal's.

    The first Ctrl-C or SIGTERM passes SIGTERM on to the group, which is killed as soon as none of it is busy any more;
    the second kills it at once.

    Args:
        command: The program and its arguments.
        environment: The child's environment variables.
        on_line: Receives each line of standard output and standard error.
        busy: Tells whether anything in the group still has to end tidily.
        on_stop: Called once, when the group has been asked to stop.
        inbox: Receives lines and signals; a caller that keeps it can put signals in from other threads.

    Returns:
        The child's exit code, and whether it was asked to stop.
    """
    inbox = SimpleQueue() if inbox is None else inbox
    stopping = False
    with _signals_to(inbox), _group(command, environment) as child:
        assert child.stdout is not None
        threading.Thread(target=_listen, args=(child.stdout, inbox), daemon=True).start()
        while (message := inbox.get()) is not None:
            if isinstance(message, str):
                on_line(message)
            else:
                _signal(child, signal.SIGKILL if stopping or message == signal.SIGKILL else signal.SIGTERM)
                if not stopping:
                    on_stop()
                stopping = True
            if stopping and not busy():
                _signal(child, signal.SIGKILL)
    return child.returncode, stopping


@contextlib.contextmanager
def _group(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(  # noqa: S603 - no shell
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="backslashreplace",
        start_new_session=True,
    )
    with child:
        try:
            yield child
        except BaseException:
            _signal(child, signal.SIGKILL)
            raise


def _signal(child: subprocess.Popen[str], number: int) -> None:
    if child.poll() is None:  # its number cannot be another process's yet
        os.killpg(child.pid, number)


def _listen(stream: IO[str], inbox: Inbox) -> None:
    for line in stream:
        inbox.put(line)
    inbox.put(None)


@contextlib.contextmanager
def _signals_to(inbox: Inbox) -> Iterator[None]:
    def put(number: int, _frame: FrameType | None) -> None:
        inbox.put(number)

    before = {number: signal.signal(number, put) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
