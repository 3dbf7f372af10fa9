"""The watchdog: when it counts a rank as hung (with a given clock), and how it ends real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from components.errors import Hung
from components.processes.watchdog import Watchdog
from components.progress import Progress
from tests.processes import Process

ROOT = Path(__file__).parents[3]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def looks(watchdog: Watchdog, clock: Clock, seconds: float, every: float = 0.5) -> float | None:
    """Let time go by and return the first verdict, if there is one."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += every
        overdue = watchdog.overdue()
        if overdue is not None:
            return overdue
    return None


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_step_has_a_limit_of_its_own(clock: Clock) -> None:
    watchdog = Watchdog(0, Progress(io.StringIO()), start_seconds=100, step_seconds=10, clock=clock)
    assert looks(watchdog, clock, 100) is None
    watchdog.beat(1)
    assert looks(watchdog, clock, 10) is None
    watchdog.beat(2)
    assert looks(watchdog, clock, 10) is None
    assert looks(watchdog, clock, 1) == pytest.approx(10.5, abs=0.5)


def test_a_start_that_takes_too_long_is_noticed(clock: Clock) -> None:
    watchdog = Watchdog(0, Progress(io.StringIO()), start_seconds=100, step_seconds=10, clock=clock)
    assert looks(watchdog, clock, 200) == pytest.approx(100.5)


def test_without_limits_nothing_is_too_long(clock: Clock) -> None:
    watchdog = Watchdog(0, Progress(io.StringIO()), clock=clock)
    assert looks(watchdog, clock, 1e4) is None
    watchdog.beat(1)
    assert looks(watchdog, clock, 1e4) is None


def test_time_in_which_the_process_itself_stood_still_does_not_count(clock: Clock) -> None:
    watchdog = Watchdog(0, Progress(io.StringIO()), start_seconds=100, step_seconds=10, clock=clock)
    watchdog.beat(1)
    assert watchdog.overdue() is None
    clock.now += 3600  # a suspended laptop
    assert watchdog.overdue() is None
    assert looks(watchdog, clock, 8) is None
    assert looks(watchdog, clock, 3) is not None, "but what it ran for does"


def start(script: str) -> Process:
    return Process(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


HANGING = """
    import threading
    from components.progress import Progress
    from components.processes.watchdog import Watchdog
    watchdog = Watchdog(3, Progress(), start_seconds={start}, step_seconds={step}, advice="raise the limit")
    watchdog.start()
    watchdog.beat(7)
    def wait_for_the_reader():
        {hang}
    wait_for_the_reader()
"""


def test_a_hung_rank_tells_where_it_hangs_and_ends_with_a_code_of_its_own() -> None:
    with start(HANGING.format(start=None, step=0.1, hang="threading.Event().wait()")) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == Hung.exit_code
    event = json.loads(output)
    assert event.pop("seconds") >= 0.1
    assert event == {"event": "hung", "rank": 3, "step": 7}
    assert "rank 3: hung after step 7" in errors
    assert "raise the limit" in errors
    assert "in wait_for_the_reader" in errors, "the stack of the main thread"
    assert "in _watch" in errors, "and those of the others"


def test_a_hung_rank_ends_in_bounded_time_also_when_nobody_reads_what_it_says() -> None:
    """The pipes are full: writing the last words blocks for ever."""
    full = "import os; os.set_blocking(1, False)\n        try:\n            while True: os.write(1, bytes(65536))\n"
    full += "        except BlockingIOError: os.set_blocking(1, True)\n        threading.Event().wait()"
    script = HANGING.format(start=None, step=0.1, hang=full)
    with start(
        "import components.processes.watchdog as w; w._LAST_WORDS_SECONDS = 0.5\n" + textwrap.dedent(script)
    ) as process:
        assert process.wait(60) == -signal.SIGALRM
        process.kill()


def test_a_rank_that_never_lets_go_of_the_interpreter_ends_too() -> None:
    hang = "import ctypes; ctypes.PyDLL(None).sleep(600)  # which keeps the lock"
    script = HANGING.format(start=1, step=1, hang=hang)
    with start(
        "import components.processes.watchdog as w; w._LAST_WORDS_SECONDS = 0.5\n" + textwrap.dedent(script)
    ) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "in wait_for_the_reader" in errors


def test_a_rank_dies_with_its_parent_and_takes_its_children_along() -> None:
    rank = (
        "import os, subprocess, sys; from components.progress import Progress; "
        "from components.processes.watchdog import Watchdog; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "Watchdog(0, Progress(), parent=os.getppid()).start(); "
        "print(os.getpid(), child.pid, flush=True); child.wait()"
    )
    script = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {rank!r}], start_new_session=True).wait()"
    )
    with start(script) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(is_running(pid) for pid in pids)
        parent.kill()
        # The pipe closes when the last process that could write to it is gone.
        assert parent.stdout.read() == ""
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state != "Z" and bool(os.getpid())
