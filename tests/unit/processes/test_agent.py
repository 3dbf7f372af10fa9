"""The agent as a real process over ranks that are real processes, but light ones: a few lines of Python each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import astuple
from math import inf
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError, DataError, Hung, OutOfMemory, Preempted
from components.processes.agent import Agent, Grace, Signals
from components.processes.node import Node, this_node
from components.progress import Progress
from tests.processes import Process

ROOT = Path(__file__).parents[3]
KILLED = 128 + signal.SIGKILL

AGENT = """
import json, sys
from components.progress import Progress
from components.processes.agent import Agent, Grace, Signals
from components.processes.node import Node
script, ranks, grace, restarts, parent = json.loads(sys.argv[1])
node = Node(1, 0, ranks, "127.0.0.1", 0)
with Signals().listening() as signals:
    command = [sys.executable, "-c", script]
    sys.exit(Agent(command, node, Grace(*grace), signals, Progress(), parent).run(restarts))
"""

RANK = """
import os, signal, sys, threading, time
rank = int(os.environ["RANK"])
def say(text):
    os.write(1, f"{rank} {text}\\n".encode())
def on_term(act):
    # As a rank does: the agent starts it with the signals blocked.
    signal.signal(signal.SIGTERM, lambda number, frame: act())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
def wait():
    while True:
        signal.pause()
"""


class Agency:
    """One agent process and the lines that it and its ranks write."""

    def __init__(self, rank: str, ranks: int, grace: Grace, restarts: int) -> None:
        arguments = json.dumps([RANK + textwrap.dedent(rank), ranks, astuple(grace), restarts, None])
        self.process = Process(
            [sys.executable, "-c", AGENT, arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.pids: list[int] = []

    def until(self, *lines: str) -> None:
        """Read lines until each of these was among them."""
        missing = set(lines)
        while missing:
            line = self._next()
            assert line is not None, f"it ended without {missing}: {self.lines}"
            missing.discard(line)

    def end(self) -> int:
        with self.process:
            while self._next() is not None:
                pass
        return self.process.returncode

    def events(self, event: str) -> list[dict[str, Any]]:
        events = (json.loads(line) for line in self.lines if line.startswith("{"))
        return [fields for fields in events if fields["event"] == event]

    def _next(self) -> str | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None
        self.lines.append(line.strip())
        if "rank-started" in line:
            self.pids.append(json.loads(line)["pid"])
        return self.lines[-1]


def agency(
    rank: str, ranks: int = 2, stop: float = 60, crash: float = 60, done: float | None = None, restarts: int = 0
) -> Agency:
    return Agency(rank, ranks, Grace(stop, crash, done), restarts)


def assert_gone(pids: Iterable[int]) -> None:
    """Wait until no such process runs any more; one that nobody reaps counts as gone."""
    deadline = time.monotonic() + 10
    for pid in pids:
        while Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_ranks_get_the_variables_that_torchrun_sets() -> None:
    agent = agency(
        "say(' '.join(os.environ[n] for n in ('LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR')))", 3
    )
    assert agent.end() == 0
    assert sorted(line for line in agent.lines if line[0] != "{") == [f"{n} {n} 3 3 127.0.0.1" for n in range(3)]
    assert [event["rank"] for event in agent.events("rank-started")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0, 0), 0),
        ((0, 75, 75), Preempted.exit_code),
        ((1, 75, 1), Preempted.exit_code),
        ((1, 1, 78), ConfigError.exit_code),
        ((75, 65, 1), DataError.exit_code),
        ((1, 71, 1), OutOfMemory.exit_code),
        ((1, 124, 1), Hung.exit_code),
        ((0, 3, 0), 3),
    ],
)
def test_the_code_of_the_rank_that_knows_the_reason_counts(codes: tuple[int, ...], expected: int) -> None:
    assert agency(f"sys.exit({codes}[rank])", ranks=3).end() == expected


def test_death_by_a_signal_counts_as_in_a_shell() -> None:
    agent = agency("os.kill(os.getpid(), signal.SIGSEGV)", ranks=1)
    assert agent.end() == 128 + signal.SIGSEGV


def test_after_a_crash_the_others_are_killed_together_with_what_they_started() -> None:
    rank = """
    if rank == 1:
        time.sleep(0.3)
        sys.exit(9)
    import subprocess
    child = subprocess.Popen(["sleep", "600"])
    say(child.pid)
    wait()
    """
    started = time.monotonic()
    agent = agency(rank, crash=0.1)
    assert agent.end() == 9
    assert time.monotonic() - started < 10
    assert agent.events("ranks-killed") == [{"event": "ranks-killed", "ranks": [0]}]
    (line,) = [line for line in agent.lines if line.startswith("0 ")]
    assert_gone([*agent.pids, int(line.split()[1])])


def test_a_stopped_rank_is_killed_too() -> None:
    agent = agency("os.kill(os.getpid(), signal.SIGSTOP) if rank == 0 else sys.exit(9)", crash=0.1)
    assert agent.end() == 9
    assert_gone(agent.pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_every_rank_as_sigterm(number: signal.Signals) -> None:
    agent = agency("on_term(lambda: (say('asked'), os._exit(75)))\nsay('ready')\nwait()")
    agent.until("0 ready", "1 ready")
    agent.process.send_signal(number)
    assert agent.end() == Preempted.exit_code
    assert {"0 asked", "1 asked"} <= set(agent.lines)


def test_a_signal_before_there_are_ranks_ends_the_work_in_hand() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), Signals().listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_waits_for_ranks_that_still_start() -> None:
    """They would otherwise die of it, which looks like a crash."""
    agent = agency("say('starting')\nsys.stdout.flush()\ntime.sleep(0.5)\non_term(lambda: os._exit(75))\nwait()")
    agent.until("0 starting", "1 starting")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == Preempted.exit_code


def test_ranks_that_do_not_stop_in_time_are_killed() -> None:
    agent = agency("on_term(lambda: say('busy'))\nsay('ready')\nwait()", stop=0.2, crash=0.1)
    agent.until("0 ready", "1 ready")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == KILLED
    assert {"0 busy", "1 busy"} <= set(agent.lines)


def test_a_second_ctrl_c_kills_the_ranks() -> None:
    agent = agency("on_term(lambda: say('busy'))\nsay('ready')\nwait()")
    agent.until("0 ready", "1 ready")
    agent.process.send_signal(signal.SIGINT)
    agent.until("0 busy", "1 busy")
    agent.process.send_signal(signal.SIGINT)
    assert agent.end() == KILLED


def test_a_rank_that_leaves_before_its_first_step_takes_the_others_along() -> None:
    agent = agency("if rank == 1: sys.exit(75)\non_term(lambda: os._exit(75))\nwait()")
    assert agent.end() == Preempted.exit_code


def test_ranks_that_end_in_order_leave_the_others_time_to_save() -> None:
    agent = agency("time.sleep(0.5 * rank)\nsys.exit(75)", crash=0)
    assert agent.end() == Preempted.exit_code
    assert not agent.events("ranks-killed")


@pytest.mark.parametrize(("done", "expected"), [(inf, 0), (0.1, KILLED)])
def test_a_rank_that_has_done_its_work_leaves_the_others_as_long_as_they_may(done: float, expected: int) -> None:
    agent = agency("if rank == 1: sys.exit(0)\ntime.sleep(1)", stop=0.1, crash=0.1, done=done)
    assert agent.end() == expected


def test_a_rank_that_never_ends_is_killed_after_a_request_also_if_ranks_may_take_their_time() -> None:
    agent = agency("on_term(lambda: None)\nsay('ready')\nwait()", stop=0.1, crash=0.1, done=inf)
    agent.until("0 ready", "1 ready")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == KILLED


def test_a_crash_is_restarted_as_often_as_allowed_at_another_port_each_time() -> None:
    agent = agency("say(os.environ['MASTER_PORT'])\nsys.exit(5)", ranks=1, restarts=2)
    assert agent.end() == 5
    ports = [line for line in agent.lines if line.startswith("0 ")]
    assert len(ports) == 3
    assert len(set(ports)) > 1
    assert [event["remaining"] for event in agent.events("restarting")] == [1, 0]


@pytest.mark.parametrize("code", [0, 65, 75, 78])
def test_what_a_restart_cannot_mend_is_not_restarted(code: int) -> None:
    agent = agency(f"sys.exit({code})", ranks=1, restarts=3)
    assert agent.end() == code
    assert len(agent.pids) == 1


def test_after_a_request_to_stop_nothing_is_restarted() -> None:
    agent = agency("on_term(lambda: os._exit(5))\nsay('ready')\nwait()", ranks=1, restarts=3)
    agent.until("0 ready")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end() == 5
    assert len(agent.pids) == 1


def test_the_port_stays_reserved_until_rank_0_listens_there() -> None:
    rank = """
    import socket
    port = int(os.environ["MASTER_PORT"])
    thief = socket.socket()
    try:
        thief.bind(("127.0.0.1", port))
        say("stolen")
    except OSError:
        say("reserved")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen()
    socket.create_connection(("127.0.0.1", port)).close()
    """
    agent = agency(rank, ranks=1)
    assert agent.end() == 0
    assert "0 reserved" in agent.lines


def test_the_agent_ends_with_its_parent() -> None:
    """A shell in between, since the parent must be one that a test can kill."""
    arguments = json.dumps([RANK + "say('ready')\nwait()", 2, [60, 60], 0, "PARENT"])
    script = f"""if True:
        import os, subprocess, sys
        arguments = {arguments!r}.replace('"PARENT"', str(os.getpid()))
        agent = subprocess.Popen([sys.executable, "-c", {AGENT!r}, arguments])
        print(agent.pid, flush=True)
        agent.wait()
    """
    with Process([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline())]
        ready = 0
        while ready < 2:
            line = parent.stdout.readline()
            assert line
            ready += "ready" in line
            pids += [json.loads(line)["pid"]] if "rank-started" in line else []
        parent.kill()
    assert len(pids) == 3
    assert_gone(pids)


ALONE = Node(1, 0, 3, "127.0.0.1", 0)
TWO = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "first", "PET_NPROC_PER_NODE": "4"}


@pytest.mark.parametrize(
    ("variables", "node"),
    [
        ({}, ALONE),
        ({"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "pod-0", "PET_MASTER_PORT": "29400"}, ALONE),
        ({"PET_NNODES": "1:1", "PET_NPROC_PER_NODE": "8"}, Node(1, 0, 8, "127.0.0.1", 0)),
        ({"PET_NPROC_PER_NODE": "auto"}, Node(1, 0, 16, "127.0.0.1", 0)),
        (TWO, Node(2, 1, 4, "first", 29500)),
        ({**TWO, "PET_MASTER_PORT": "29400", "PET_NPROC_PER_NODE": "gpu"}, Node(2, 1, 16, "first", 29400)),
    ],
)
def test_a_node_learns_its_place_as_torchrun_does(variables: dict[str, str], node: Node) -> None:
    assert this_node(variables, ranks=3, count=lambda _kind: 16) == node


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES='two': expected a number"),
        ({"PET_NNODES": "1:4"}, "PET_NNODES='1:4': expected one number"),
        ({"PET_NNODES": "0"}, "PET_NNODES='0': expected a number from 1"),
        ({"PET_NPROC_PER_NODE": "all"}, "PET_NPROC_PER_NODE='all'"),
        ({"PET_NPROC_PER_NODE": "²"}, "expected a number"),
        ({**TWO, "PET_NODE_RANK": "2"}, "PET_NODE_RANK='2': expected a number from 0 to 1"),
        ({**TWO, "PET_NODE_RANK": ""}, "PET_NODE_RANK is not set"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "PET_MASTER_ADDR is not set"),
        ({**TWO, "PET_MASTER_PORT": "-1"}, "PET_MASTER_PORT='-1'"),
    ],
)
def test_a_place_that_makes_no_sense_is_rejected(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        this_node(variables, ranks=1)
    assert message in str(caught.value)


def test_devices_are_counted_here() -> None:
    assert this_node({"PET_NPROC_PER_NODE": "cpu"}, ranks=1).ranks == len(os.sched_getaffinity(0))


def test_one_of_several_nodes_restarts_nothing_by_itself() -> None:
    agent = Agent(["false"], Node(2, 0, 1, "127.0.0.1", 29500), Grace(1, 1), Signals(), Progress())
    with pytest.raises(ConfigError, match="--restarts 1 on one of 2 nodes"):
        agent.run(restarts=1)
