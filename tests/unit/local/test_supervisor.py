"""A child that is stopped gets its time to end, and no longer than that; the processes here are real."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from pipeline.local.supervisor import supervise

# A group that ends tidily: the parent stays, the child says goodbye.
TIDY = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: None)
child = '''
import signal, sys, time
def leave(*_):
    print("goodbye", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(600)
'''
with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout:
        print("child:", line, end="", flush=True)
while True:
    signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


class Listener:
    """Hears lines, and does something at once when one comes."""

    def __init__(self, **reactions: Callable[[], None]) -> None:
        self.lines: list[str] = []
        self.stops = 0
        self._reactions = reactions

    def on_line(self, line: str) -> None:
        self.lines.append(line.rstrip("\n"))
        self._reactions.get(line.split()[-1] if line.split() else "", lambda: None)()

    def on_stop(self) -> None:
        self.stops += 1

    def run(self, program: str, busy: Callable[[], bool]) -> tuple[int, bool]:
        command = [sys.executable, "-c", program]
        return supervise(command, os.environ, self.on_line, busy, self.on_stop)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_every_line_is_heard_and_the_exit_code_comes_back() -> None:
    listener = Listener()
    program = r"import os, sys; os.write(1, b'a\n'); os.write(2, b'b\n'); os.write(1, b'\xff'); sys.exit(65)"
    assert listener.run(program, busy=lambda: False) == (65, False)
    assert listener.lines == ["a", "b", "\\xff"]
    assert listener.stops == 0


def test_the_first_signal_lets_what_is_busy_end_and_then_ends_the_rest() -> None:
    listener = Listener(ready=interrupt)
    code, asked = listener.run(TIDY, busy=lambda: "child: goodbye" not in listener.lines)
    assert (code, asked) == (-signal.SIGKILL, True)
    assert listener.lines == ["child: ready", "child: goodbye"]
    assert listener.stops == 1


def test_sigterm_counts_like_ctrl_c() -> None:
    listener = Listener(ready=lambda: signal.raise_signal(signal.SIGTERM))
    assert listener.run(STUBBORN, busy=lambda: "no" not in listener.lines) == (-signal.SIGKILL, True)


def test_the_second_signal_waits_for_nothing() -> None:
    listener = Listener(ready=interrupt, no=interrupt)
    assert listener.run(STUBBORN, busy=lambda: True) == (-signal.SIGKILL, True)
    assert listener.lines[:2] == ["ready", "no"]
    assert listener.stops == 1


def test_where_nothing_is_busy_the_first_signal_is_enough() -> None:
    listener = Listener(ready=interrupt)
    assert listener.run(STUBBORN, busy=lambda: False) == (-signal.SIGKILL, True)


def test_the_handlers_of_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Listener().run("pass", busy=lambda: False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_where_the_listener_fails_nothing_is_left_running() -> None:
    pids: list[int] = []

    def fail(line: str) -> None:
        pids.append(int(line))
        raise ValueError("the disk is full")

    program = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with pytest.raises(ValueError, match="the disk is full"):
        supervise([sys.executable, "-c", program], os.environ, fail, lambda: False, lambda: None)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
