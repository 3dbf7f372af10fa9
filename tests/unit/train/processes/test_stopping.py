"""How a rank hears that it should stop, in real processes, and how several agree on the step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from components.errors import Preempted
from components.train.processes.agreement import Agreed
from components.train.processes.stopping import Stopping
from tests.processes import Process

ROOT = Path(__file__).parents[4]


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


def said(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


LISTENING = """
    import ctypes, os, signal, sys, threading
    from components.train.processes.stopping import Stopping
    stopping = Stopping(lambda event, why: print(why, flush=True))
    def stay_inside_a_call():  # which no signal interrupts: locking a mutex twice
        mutex = ctypes.create_string_buffer(64)
        while True:
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_signal_before_the_first_step_ends_the_rank_with_75_even_inside_a_long_call() -> None:
    waiting = f"{LISTENING}\n    stopping.listen()\n    print('ready', flush=True)\n    stay_inside_a_call()"
    with start(waiting) as process:
        assert said(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert said(process) == "SIGTERM"
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
    print(stopping.asked, flush=True)
    sys.stdin.readline()
    import time
    deadline = time.monotonic() + 30  # the thread that hears says so first, and notes it then
    while not stopping.asked and time.monotonic() < deadline:
        time.sleep(0.001)
    print(stopping.asked, flush=True)
    """
    with start(script) as process:
        assert said(process) == "False"
        process.send_signal(signal.SIGINT)
        assert said(process) == "SIGINT"
        process.send_signal(signal.SIGTERM)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        assert said(process) == "True", "the second signal is not told again"
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
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stopping.asked, flush=True)
    """
    with start(script) as process:
        assert said(process) == f"{-signal.SIGTERM} False"
        assert process.wait(30) == 0


def test_asking_is_told_once_and_leaves_only_before_the_first_step() -> None:
    told: list[str] = []
    left: list[int] = []

    def tell(event: str, detail: str) -> None:
        told.append(f"{event}: {detail}")

    stopping = Stopping(tell, leave=left.append)
    stopping.begin()
    stopping.ask("aws: terminate")
    stopping.ask("SIGTERM")
    assert (told, left, stopping.asked) == (["stop-asked: aws: terminate"], [], True)
    Stopping(tell, leave=left.append).ask("SIGTERM")
    assert left == [Preempted.exit_code]


def test_nobody_reading_what_is_told_does_not_keep_the_rank() -> None:
    def broken(_event: str, _detail: str) -> None:
        raise BrokenPipeError

    left: list[int] = []
    Stopping(broken, leave=left.append).ask("SIGTERM")
    assert left == [Preempted.exit_code]


def test_a_rank_that_cannot_save_within_its_grace_ends_all_the_same() -> None:
    script = f"""{LISTENING}
    stopping.grace = 0.2
    stopping.listen()
    stopping.begin()
    print("ready", flush=True)
    stay_inside_a_call()
    """
    with start(script) as process:
        assert said(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert said(process) == "SIGTERM"
        assert said(process) == "the checkpoint was not committed within 0.2 s; the one before it stands"
        assert process.wait(30) == Preempted.exit_code


# Each rank is asked to stop after some step, or never.
ASKED: Mapping[str, tuple[int | None, ...]] = {"first": (4, None, None), "two": (None, 5, 4)}

# One rank: 12 steps with a checkpoint every 5. Rank 0's clock says that its first three steps take 4 s each.
RANK = """
    import itertools, json, sys, torch
    from components.train.processes.agreement import Agreement
    from components.train.processes.stopping import Stopping
    rank, world, meeting, asked, late_below = json.loads(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    clock = itertools.accumulate([0.0] + [4.0 if rank == 0 else 0.01] * 3 + [0.01] * 20)
    stopping = Stopping(leave=lambda code: None)
    agreement = Agreement(stopping, torch.device("cpu"), late_below, clock=lambda: next(clock))
    for step in range(1, 13):
        if asked == step:
            stopping.ask("test")
        agreed = agreement.reach(step, float(rank + step), {"step": step}, at_once=step in (5, 10, 12))
        print(json.dumps([step, agreed]), flush=True)
        if any(one.stop for one in agreed):
            break
    torch.distributed.destroy_process_group()
"""


def gang(folder: Path, asked: Sequence[int | None], late_below: float) -> list[dict[int, list[Agreed]]]:
    """Run real processes that talk over gloo and return, per rank, what was agreed after which step."""
    meeting = f"file://{folder}/meeting"
    told = []
    with ExitStack() as stack:
        arguments = [json.dumps([rank, len(asked), meeting, step, late_below]) for rank, step in enumerate(asked)]
        for process in [stack.enter_context(start(RANK, one)) for one in arguments]:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            lines = [json.loads(line) for line in output.splitlines()]
            told.append({step: [Agreed(*one) for one in agreed] for step, agreed in lines})
    return told


@pytest.mark.parametrize("asked", [pytest.param(ASKED["first"], marks=pytest.mark.proof), ASKED["two"]], ids=ASKED)
@pytest.mark.parametrize(("late_below", "stops_after"), [(0.0, 4), (1e9, 5)], ids=["at-once", "late"])
def test_all_ranks_stop_after_the_same_step(
    tmp_path: Path, asked: Sequence[int | None], late_below: float, stops_after: int
) -> None:
    for agreed in gang(tmp_path, asked, late_below):
        assert max(agreed) == stops_after
        told = [one for after in agreed.values() for one in after]
        assert [one.step for one in told] == list(range(1, stops_after + 1)), "each is told once, and the last one, too"
        assert [one.loss for one in told] == [3.0 + 3 * one.step for one in told], "the sum over the ranks"
        assert [one.stop for one in told] == [one.step >= 4 for one in told]
        assert [one.facts for one in told] == [{"step": one.step} for one in told]


def test_short_steps_are_read_late_but_for_those_before_a_checkpoint_and_long_ones_at_once(tmp_path: Path) -> None:
    for agreed in gang(tmp_path, (None, None), late_below=1.0):
        read = {step: [one.step for one in after] for step, after in agreed.items()}
        # The ranks' mean is 2 s for the first three steps; the fourth, read at once, says that steps are short now.
        assert read == {
            1: [1], 2: [2], 3: [3], 4: [4], 5: [5], 6: [], 7: [6], 8: [7], 9: [8], 10: [9, 10], 11: [], 12: [11, 12],
        }  # fmt: skip


def test_a_step_that_was_posted_before_the_stop_was_read_is_returned_with_it(tmp_path: Path) -> None:
    for agreed in gang(tmp_path, (6, None), late_below=3.0):
        read = {step: [one.step for one in after] for step, after in agreed.items()}
        # The first step took the ranks 2 s as a mean, and 4 s as a sum: the others are read late.
        assert read == {1: [1], 2: [], 3: [2], 4: [3], 5: [4, 5], 6: [], 7: [6, 7]}
        last = agreed[7]
        assert [one.stop for one in last] == [True, True]
        assert [one.loss for one in last] == [2 * 6 + 1.0, 2 * 7 + 1.0]
        assert [one.facts for one in last] == [{"step": 6}, {"step": 7}]
