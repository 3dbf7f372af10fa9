"""A launcher that is killed at any moment: the next one goes on, with one job and each second in the ledger once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import pytest

from components.storage.local import LocalStorage
from components.storage.open import open_storage
from tests.cluster.api_server import ApiServer
from tests.cluster.harness import STEPS, Harness, assert_books_are_right
from tests.cluster.operators import GangScript, Operators

SCRIPTS = (GangScript(exit_codes=(75,)), GangScript(exit_codes=(1, 75)))
# Forks launchers, so that each is a process of its own without importing everything again.
FORK_SERVER = """
import json, os, sys
from pathlib import Path
from components.storage.open import open_storage
from tests.cluster.api_server import ApiServer
from tests.cluster.harness import Harness

class RemoteApiServer(ApiServer):
    def __init__(self, url): self.address = url
    @property
    def url(self): return self.address

for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        harness = Harness(RemoteApiServer(request["url"]), open_storage(request["workdir"]))
        os._exit(0 if harness.launch(harness.settings())["step"] == request["steps"] else 9)
    print(json.dumps({"pid": pid}), flush=True)
    print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
"""


class ForkServer:
    """Starts launchers and waits for their end."""

    def __init__(self) -> None:
        root = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def start(self, harness: Harness) -> int:
        """Start a launcher and return its process id."""
        request = {"url": harness.server.url, "workdir": harness.workdir.url, "steps": STEPS}
        self._pipes[0].write(json.dumps(request) + "\n")
        self._pipes[0].flush()
        return int(json.loads(self._pipes[1].readline())["pid"])

    def wait(self) -> int:
        return int(json.loads(self._pipes[1].readline())["code"])

    def close(self) -> None:
        with self._process:
            self._pipes[0].close()


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def assert_nothing_lost_or_repeated(harness: Harness, operators: Operators, jobs: int = 1) -> None:
    assert len(operators.jobs) == jobs
    assert operators.max_running == 1
    assert not harness.remaining_objects
    assert harness.exit_codes(harness.settings()) == [75, 1, 0]
    assert_books_are_right(harness, harness.settings())


class LauncherKiller:
    """Kills the launcher that follows the run, once it does, and waits for the next one to follow it.

    Attributes:
        kills: The moments at which it has killed a launcher.
    """

    def __init__(self, harness: Harness) -> None:
        self.kills: list[str] = []
        self._harness = harness
        self._pid = 0
        self._earlier_requests = 0

    def start_launcher(self, fork_server: ForkServer) -> None:
        self._earlier_requests = len(self._harness.server.requests)
        self._pid = fork_server.start(self._harness)

    def kill_in(self, state: str) -> None:
        """Kill the launcher while the cluster stands still in a state."""
        self._wait_for_launcher(pod_requests=2)
        self.kill(state)
        self._wait_for_launcher(pod_requests=2)

    def kill(self, moment: str) -> None:
        self._wait_for_launcher(pod_requests=0)
        pid, self._pid = self._pid, 0
        self.kills.append(moment)
        os.kill(pid, signal.SIGKILL)

    def _wait_for_launcher(self, pod_requests: int) -> None:
        """Wait for a launcher, and until it has sent so many requests for pods: the first lists, the next watches."""
        deadline = time.monotonic() + 30
        while not self._pid or self._pod_requests() < pod_requests:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def _pod_requests(self) -> int:
        return sum("/pods" in path for _, path in self._harness.server.requests[self._earlier_requests :])


@pytest.mark.slow
def test_a_launcher_that_is_killed_in_every_state_is_replaced_by_the_next(
    harness: Harness, fork_server: ForkServer
) -> None:
    killer = LauncherKiller(harness)

    def kill_before_the_answer(method: str, path: str) -> None:
        if method in ("POST", "DELETE") and "trainjobs" in path and method not in killer.kills:
            killer.kill(method)

    harness.server.after = kill_before_the_answer
    states = ("pending", "pulling", "running", "ended")
    codes: list[int] = []
    with harness.operators(harness.settings(), *SCRIPTS) as operators:
        for state in states:
            operators.on(state, partial(killer.kill_in, state))
        while not codes or codes[-1] != 0:
            killer.start_launcher(fork_server)
            codes.append(fork_server.wait())
    assert codes == [-signal.SIGKILL] * 6 + [0]
    assert killer.kills == ["POST", *states, "DELETE"]
    assert_nothing_lost_or_repeated(harness, operators)


class Killed(BaseException):
    """Ends the launcher in this process as SIGKILL would: nothing more is written."""


class KillingStorage(LocalStorage):
    """A storage that kills its process right before, or right after, a write.

    Attributes:
        moments_left: It kills at the last of so many moments; each write has one before it and one after it.
    """

    moments_left = 0

    def write(self, key: str, data: bytes) -> None:
        self._count()
        super().write(key, data)
        self._count()

    def append(self, key: str, data: bytes) -> None:
        self._count()
        super().append(key, data)
        self._count()

    def child(self, prefix: str) -> LocalStorage:
        folder = super().child(prefix).local_path()
        assert folder is not None
        return KillingStorage(folder)

    def _count(self) -> None:
        if threading.current_thread() is threading.main_thread():
            KillingStorage.moments_left -= 1
            if KillingStorage.moments_left == 0:
                raise Killed


def launch_with_a_kill(harness: Harness, moment: int) -> bool:
    """Launch, be killed at a moment, and launch again to the end; tell whether the first launch was killed at all."""
    config = harness.settings()
    folder = harness.workdir.local_path()
    assert folder is not None
    storage, was_killed = KillingStorage(folder), False
    with harness.operators(config, *SCRIPTS) as operators:
        KillingStorage.moments_left = moment
        try:
            Harness(harness.server, storage).launch(config)
        except Killed:
            was_killed = True
        KillingStorage.moments_left = 0
        assert harness.launch(config)["step"] == STEPS
    assert_nothing_lost_or_repeated(harness, operators, jobs=len(operators.jobs))
    assert len(operators.jobs) == 1 or not was_killed
    return was_killed


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 9, 15, 21, 27, 33])
def test_a_launcher_that_is_killed_between_two_writes_loses_and_repeats_nothing(harness: Harness, moment: int) -> None:
    launch_with_a_kill(harness, moment)


@pytest.mark.proof
def test_a_launcher_that_is_killed_at_every_write_loses_and_repeats_nothing(tmp_path: Path) -> None:
    for moment in range(1, 200):
        server = ApiServer()
        was_killed = launch_with_a_kill(Harness(server, open_storage(str(tmp_path / str(moment)))), moment)
        server.stop()
        if not was_killed:
            assert moment > 20
            return
    raise AssertionError("the launcher writes without end")
