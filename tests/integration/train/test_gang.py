"""Three machines as processes, restarted by the chart's own rules: whatever is killed, the bytes are the same."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import Preempted
from components.model import checkpoints
from tests import yaml_text
from tests.chart.test_restarts import action, failure
from tests.integration.train.test_agent import Agent, assert_gone

CHART = Path(__file__).parents[3] / "charts/darkroom"
NODES = 3
SETTINGS = ("steps=24", "checkpoint.every=4", "limits.crash_grace_seconds=1")
Strike = Callable[["Machine"], None]


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    """The JobSet that the chart's TrainingRuntime makes."""

    chart = pytest.importorskip("helm_python.chart", reason="helm-python-sdk renders the chart")
    with chart.Chart.load(CHART) as found:
        files = found.render({}, name="dr", namespace="kubeflow")
        texts = [text for file, text in files.items() if file.endswith(".yaml")]
        manifests = [one for text in texts for one in yaml_text.load_all(text) if isinstance(one, dict)]
    (runtime,) = [one for one in manifests if one["kind"] == "TrainingRuntime"]
    spec: dict[str, Any] = runtime["spec"]["template"]["spec"]
    return spec


class Machine:
    """One pod's container: the trainer with what Kubeflow Trainer tells it, and a thread that hears it."""

    def __init__(self, workshop: Any, run: str, number: int, port: int) -> None:
        place = {"PET_NNODES": str(NODES), "PET_NODE_RANK": str(number), "PET_NPROC_PER_NODE": "1"}
        place |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        self.agent = Agent(workshop, run, *SETTINGS, place=place)
        self.number = number
        self._ears = threading.Thread(target=self.agent.end)
        self._ears.start()

    @property
    def step(self) -> int:
        return max((event["step"] for event in self.agent.told("step")), default=0)

    def poll(self) -> int | None:
        """Return the exit code as a kubelet tells it, once the process has ended."""
        code = self.agent.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def close(self) -> int:
        self._ears.join()
        code = self.poll()
        assert code is not None
        return code


def play(workshop: Any, jobset: dict[str, Any], run: str, strikes: list[Strike]) -> list[tuple[int, str]]:
    """Run gangs as Job and JobSet controllers do; return the code and the rule of each one that failed."""
    (part,) = jobset["replicatedJobs"]
    history: list[tuple[int, str]] = []
    counted = 0
    while True:
        strike = strikes.pop(0) if strikes else lambda _machine: None
        code = gang(workshop, run, strike)
        if code == 0:
            return history
        rule, what = action(jobset, *failure(part["template"]["spec"], code, ()))
        history.append((code, rule))
        counted += what == "RestartJobSet"
        if what == "FailJobSet" or counted > jobset["failurePolicy"]["maxRestarts"]:
            return history


def gang(workshop: Any, run: str, strike: Strike) -> int:
    """Run all machines once; the code of the first that failed, after which the Job controller ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [Machine(workshop, run, number, port) for number in range(NODES)]
    deadline, failed = time.monotonic() + 300, 0
    while not failed and any(machine.poll() is None for machine in machines):
        assert time.monotonic() < deadline, "\n".join(machine.agent.output for machine in machines)
        strike(machines[0])
        failed = next((code for machine in machines if (code := machine.poll())), 0)
        time.sleep(0.02)
    for machine in machines:
        if failed and machine.poll() is None:
            machine.agent.process.terminate()
    for machine in machines:
        machine.close()
    assert_gone(pid for machine in machines for pid in machine.agent.ranks.values())
    return failed


def once(at_step: int, act: Callable[[Machine], None]) -> Strike:
    done: list[bool] = []

    def strike(first: Machine) -> None:
        if not done and first.step >= at_step:
            done.append(True)
            act(first)

    return strike


def terminate(machine: Machine) -> None:
    machine.agent.process.send_signal(signal.SIGTERM)


def crash(machine: Machine) -> None:
    """Kill the one rank of a machine outright, as a driver or the kernel would."""
    os.kill(machine.agent.ranks[machine.number], signal.SIGKILL)


@pytest.mark.proof
def test_a_notice_and_a_crash_of_one_of_three_machines_change_no_byte(workshop: Any, jobset: dict[str, Any]) -> None:
    calm = workshop.train("calm-gang", *SETTINGS, "ranks=3")
    assert calm.code == 0, calm.output
    history = play(workshop, jobset, "stormy-gang", [once(7, terminate), once(14, crash)])
    assert [rule for _code, rule in history] == ["preempted", "crashed"], history
    assert history[0][0] == Preempted.exit_code
    assert workshop.state("stormy-gang") == workshop.state("calm-gang")
    assert workshop.losses("stormy-gang") == workshop.losses("calm-gang")
    newest = checkpoints.newest(workshop.run("stormy-gang"))
    assert newest is not None
    assert len(newest.parts) == NODES
