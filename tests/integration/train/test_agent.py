"""Real trainings that are stopped while they load, hang, lose their agent, restart, or run on two machines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError, DataError, Hung, Preempted
from components.model import checkpoints
from tests.processes import Process

pytestmark = pytest.mark.slow

CRASH_CODES = set(range(1, 256)) - {Preempted.exit_code, ConfigError.exit_code, DataError.exit_code}
LONG = ("steps=100000", "checkpoint.every=5")


class Agent:
    """One ``python -m components.train`` and what it says."""

    def __init__(
        self, workshop: Any, run: str, *overrides: str, flags: Iterable[str] = (), place: Mapping[str, str] = {}
    ) -> None:
        arguments = ["--workdir", workshop.workdir.url, "--run", run, "--encoding-key", "key", "--seed", "5"]
        arguments += ["--base-model", "workdir:models/base/tiny", *flags]
        for text in (*(f"{key}={json.dumps(value)}" for key, value in workshop.settings.items()), *overrides):
            arguments += ["--set", text]
        self.run = workshop.run(run)
        self.process = Process(
            [sys.executable, "-m", "components.train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place},
        )
        self.output = ""
        self.events: list[dict[str, Any]] = []

    def until(self, event: str, at_step: int = 0, times: int = 1) -> dict[str, Any]:
        """Read on until an event is told, so often or at such a step."""
        for found in self._listen():
            if found["event"] == event and found.get("step", 0) >= at_step:
                times -= 1
                if times == 0:
                    return found
        raise AssertionError(f"it ended before it told {event!r}:\n{self.output}")

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        with self.process:
            for _ in self._listen():
                pass
        return self.process.returncode

    def told(self, event: str) -> list[dict[str, Any]]:
        return [found for found in self.events if found["event"] == event]

    @property
    def ranks(self) -> dict[int, int]:
        return {event["rank"]: event["pid"] for event in self.told("rank-started")}

    def _listen(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith('{"event"'):
                self.events.append(json.loads(line))
                yield self.events[-1]


def assert_gone(pids: Iterable[int]) -> None:
    """Wait until no such process runs any more; one that nobody reaps counts as gone."""
    deadline = time.monotonic() + 10
    for pid in pids:
        while Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("event", ["rank-started", "loading"])
@pytest.mark.parametrize("whom", ["agent", "rank"])
def test_a_signal_before_the_first_step_is_a_preemption_and_no_crash(workshop: Any, event: str, whom: str) -> None:
    agent = Agent(workshop, f"early-{event}-{whom}")
    agent.until(event, times=2 if event == "rank-started" else 1)
    started = time.monotonic()
    os.kill(agent.process.pid if whom == "agent" else agent.ranks[1], signal.SIGTERM)
    assert agent.end() == Preempted.exit_code, agent.output
    assert time.monotonic() - started < 10
    assert checkpoints.newest(agent.run) is None
    assert_gone(agent.ranks.values())


def test_ranks_do_not_outlive_an_agent_that_is_killed(workshop: Any) -> None:
    agent = Agent(workshop, "orphans", *LONG)
    agent.until("step", at_step=3)
    agent.process.kill()
    agent.end()
    assert_gone(agent.ranks.values())


def test_a_hung_rank_ends_the_gang_with_the_stacks_of_those_that_wait_for_it(workshop: Any) -> None:
    agent = Agent(workshop, "hung", *LONG, "limits.hang_seconds=3", "limits.crash_grace_seconds=0.5")
    agent.until("step", at_step=6)
    started = time.monotonic()
    os.kill(agent.ranks[1], signal.SIGSTOP)
    assert agent.end() == Hung.exit_code, agent.output
    assert 3 < time.monotonic() - started < 15
    (event,) = agent.told("hung")
    assert event["rank"] == 0
    assert event["step"] >= 6
    assert "rank 0: hung after step" in agent.output
    assert "Thread 0x" in agent.output
    assert 'components/train/loop.py", line' in agent.output, "where the main thread waits"
    assert agent.told("ranks-killed") == [{"event": "ranks-killed", "ranks": [1]}]
    assert_gone(agent.ranks.values())
    saved = checkpoints.newest(agent.run)
    assert saved is not None
    assert event["step"] - saved.step <= 5, "no more than an interval is lost"


@pytest.mark.proof  # tests/unit/processes/test_agent.py restarts quicker ranks
def test_a_crash_is_restarted_here_when_told_to(workshop: Any) -> None:
    agent = Agent(workshop, "restarts", flags=["--restarts", "1"])
    agent.until("step", at_step=16)
    os.kill(agent.ranks[1], signal.SIGKILL)
    assert agent.end() == 0, agent.output
    assert len(agent.told("restarting")) == 1
    assert agent.told("resumed")[0]["step"] >= 14
    assert agent.told("finished")


@contextmanager
def aws_notice() -> Iterator[tuple[str, threading.Event]]:
    """A metadata server that tells of a reclaim once the event is set; yields its address and the event."""
    reclaimed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = self.path.removeprefix("/latest/")
            known = {"api/token": "token"}
            if reclaimed.is_set():
                known["meta-data/spot/instance-action"] = '{"action": "terminate", "time": "2026-11-05T08:22:00Z"}'
            body = known.get(path, "").encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", reclaimed
    server.shutdown()
    thread.join()
    server.server_close()


def two_machines(workshop: Any, run: str, *of_the_second: str) -> tuple[Agent, Agent]:
    """Start two agents that know of each other only what Kubeflow Trainer tells them; one may have other settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}
        place["PET_MASTER_PORT"] = str(free.getsockname()[1])
    first, second = (
        Agent(workshop, run, *LONG, *overrides, place={**place, "PET_NODE_RANK": str(number)})
        for number, overrides in enumerate(((), of_the_second))
    )
    return first, second


def test_a_cloud_notice_to_one_machine_stops_both_after_the_same_step(workshop: Any) -> None:
    with aws_notice() as (address, reclaimed):
        polls = ("notices.cloud=aws", f"notices.address={address}", "notices.every=0.05")
        first, second = two_machines(workshop, "two-notice", *polls)
        first.until("step", at_step=4)
        reclaimed.set()
        assert [first.end(), second.end()] == [Preempted.exit_code] * 2, first.output + second.output
    why = "aws: terminate at 2026-11-05T08:22:00Z"
    assert second.told("stop-asked") == [{"event": "stop-asked", "rank": 1, "why": why}]
    assert not first.told("stop-asked")
    saved = checkpoints.newest(first.run)
    assert saved is not None
    assert len(saved.parts) == 2
    assert [event["step"] for event in first.told("preempted")] == [saved.step]
    assert max(line["step"] for line in first.run.read_lines("metrics.jsonl")) == saved.step, "no step is lost"


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.proof), 1])
def test_when_one_machine_goes_the_other_ends_in_bounded_time(workshop: Any, killed: int) -> None:
    agents = two_machines(workshop, f"two-killed-{killed}")
    agents[0].until("step", at_step=7)
    agents[1].until("rank-started")
    started = time.monotonic()
    agents[killed].process.kill()
    left = agents[1 - killed]
    assert left.end() in CRASH_CODES, left.output
    assert time.monotonic() - started < 15
    agents[killed].end()
    assert_gone(pid for agent in agents for pid in agent.ranks.values())
    saved = checkpoints.newest(left.run)
    assert saved is not None
    assert saved.step >= 5
