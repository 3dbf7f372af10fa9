"""How a rank is asked to stop, in real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from components.errors import Preempted
from components.processes.stopping import Stopping
from tests.processes import Process

ROOT = Path(__file__).parents[3]


def start(script: str, *arguments: str) -> Process:
    """Start Python code as a process, with the signals blocked as the agent blocks them."""
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        return Process(
            [sys.executable, "-c", textwrap.dedent(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


def next_line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


LISTENING = """
    import ctypes, os, signal, sys, threading
    from components.processes.stopping import Stopping
    stopping = Stopping(lambda event, why: print(why, flush=True))
    def stay_inside_a_call():  # which no signal interrupts: locking a mutex twice
        mutex = ctypes.create_string_buffer(64)
        while True:
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_signal_before_the_first_step_ends_the_rank_with_75_even_inside_a_long_call() -> None:
    waiting = f"{LISTENING}\n    stopping.listen()\n    print('ready', flush=True)\n    stay_inside_a_call()"
    with start(waiting) as process:
        assert next_line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert next_line(process) == "SIGTERM"
        assert process.wait(30) == Preempted.exit_code


def test_a_signal_while_python_still_starts_is_not_lost() -> None:
    with start(f"{LISTENING}\n    sys.stdin.read()\n    stopping.listen()\n    threading.Event().wait()") as process:
        process.send_signal(signal.SIGTERM)
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == Preempted.exit_code


def test_a_signal_after_the_first_step_only_asks() -> None:
    script = f"""{LISTENING}
    stopping.listen()
    stopping.begin()
    print(stopping.is_requested, flush=True)
    sys.stdin.readline()
    import time
    deadline = time.monotonic() + 30  # the listening thread reports the request before it notes it
    while not stopping.is_requested and time.monotonic() < deadline:
        time.sleep(0.001)
    print(stopping.is_requested, flush=True)
    """
    with start(script) as process:
        assert next_line(process) == "False"
        process.send_signal(signal.SIGINT)
        assert next_line(process) == "SIGINT"
        process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        assert next_line(process) == "True", "the second signal is not reported again"
        assert process.wait(30) == 0


def test_a_forked_child_dies_by_its_own_signals_and_its_parent_is_not_asked() -> None:
    script = f"""{LISTENING}
    stopping.listen()
    stopping.begin()
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stopping.is_requested, flush=True)
    """
    with start(script) as process:
        assert next_line(process) == f"{-signal.SIGTERM} False"
        assert process.wait(30) == 0


def test_a_request_is_reported_once_and_ends_the_rank_only_before_the_first_step() -> None:
    events: list[str] = []
    codes: list[int] = []

    def report(event: str, detail: str) -> None:
        events.append(f"{event}: {detail}")

    stopping = Stopping(report, leave=codes.append)
    stopping.begin()
    stopping.ask("aws: terminate")
    stopping.ask("SIGTERM")
    assert (events, codes, stopping.is_requested) == (["stop-asked: aws: terminate"], [], True)
    Stopping(report, leave=codes.append).ask("SIGTERM")
    assert codes == [Preempted.exit_code]


def test_a_rank_ends_also_if_nobody_reads_its_events() -> None:
    def broken(_event: str, _detail: str) -> None:
        raise BrokenPipeError

    codes: list[int] = []
    Stopping(broken, leave=codes.append).ask("SIGTERM")
    assert codes == [Preempted.exit_code]


def test_a_rank_that_cannot_save_within_its_grace_ends_all_the_same() -> None:
    script = f"""{LISTENING}
    stopping.grace = 0.2
    stopping.listen()
    stopping.begin()
    print("ready", flush=True)
    stay_inside_a_call()
    """
    with start(script) as process:
        assert next_line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert next_line(process) == "SIGTERM"
        assert next_line(process) == "the checkpoint was not committed within 0.2 s; the one before it stands"
        assert process.wait(30) == Preempted.exit_code
