"""A launcher that is killed at any moment: the next one goes on, with one job and every second in the books once."""

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
from tests.cluster.lab import STEPS, Ears, Lab, assert_books_are_right
from tests.cluster.operators import Life, Operators

SCRIPT = (Life(codes=(75,)), Life(codes=(1, 75)))
# Forks launchers, so that each is a process of its own without importing everything anew.
ZYGOTE = """
import json, os, sys
from pathlib import Path
from components.storage.open import open_storage
from tests.cluster.api_server import ApiServer
from tests.cluster.lab import Ears, Lab

class There(ApiServer):
    def __init__(self, url): self.address = url
    @property
    def url(self): return self.address

for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        lab = Lab(There(asked["url"]), open_storage(asked["workdir"]), Ears())
        os._exit(0 if lab.launch(lab.settings())["step"] == asked["steps"] else 9)
    print(json.dumps({"pid": pid}), flush=True)
    print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
"""


class Zygote:
    """Starts launchers and tells how they end."""

    def __init__(self) -> None:
        root = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
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

    def start(self, lab: Lab) -> int:
        """Start a launcher and return its process id."""
        told = {"url": lab.server.url, "workdir": lab.workdir.url, "steps": STEPS}
        self._pipes[0].write(json.dumps(told) + "\n")
        self._pipes[0].flush()
        return int(json.loads(self._pipes[1].readline())["pid"])

    def wait(self) -> int:
        return int(json.loads(self._pipes[1].readline())["code"])

    def close(self) -> None:
        with self._process:
            self._pipes[0].close()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    server = ApiServer()
    yield Lab(server, open_storage(str(tmp_path)), Ears())
    server.stop()


def assert_well_done(lab: Lab, operators: Operators, jobs: int = 1) -> None:
    assert len(operators.jobs) == jobs, "no second job"
    assert operators.most == 1
    assert not lab.left
    assert lab.codes(lab.settings()) == [75, 1, 0]
    assert_books_are_right(lab, lab.settings())


class Reaper:
    """Kills whichever launcher follows the run, once it has taken over, and waits for the next to do so."""

    def __init__(self, lab: Lab) -> None:
        self.kills: list[str] = []
        self.pid = 0
        self._lab = lab
        self._began = 0

    def watch(self, zygote: Zygote) -> None:
        self._began = len(self._lab.server.seen)
        self.pid = zygote.start(self._lab)

    def strike(self, state: str) -> None:
        """Kill while the cluster stands still in a state."""
        self._wait(requests=2)
        self.at_once(state)
        self._wait(requests=2)

    def at_once(self, state: str) -> None:
        self._wait(requests=0)
        pid, self.pid = self.pid, 0
        self.kills.append(state)
        os.kill(pid, signal.SIGKILL)

    def _wait(self, requests: int) -> None:
        """Wait until there is a launcher, and until it has listed the pods and watches them."""
        deadline = time.monotonic() + 30
        while not self.pid or sum("/pods" in path for _, path in self._lab.server.seen[self._began :]) < requests:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.mark.slow
def test_a_launcher_that_is_killed_in_every_state_is_replaced_by_the_next(lab: Lab, zygote: Zygote) -> None:
    reaper = Reaper(lab)

    def after(method: str, path: str) -> None:
        """Kill whoever has made or deleted the job, before it hears of it."""
        if method in ("POST", "DELETE") and "trainjobs" in path and method not in reaper.kills:
            reaper.at_once(method)

    lab.server.after = after
    states = ("pending", "pulling", "running", "ended")
    codes: list[int] = []
    with lab.operators(lab.settings(), *SCRIPT) as operators:
        for state in states:
            operators.on(state, partial(reaper.strike, state))
        while not codes or codes[-1] != 0:
            reaper.watch(zygote)
            codes.append(zygote.wait())
    assert codes == [-signal.SIGKILL] * 6 + [0]
    assert reaper.kills == ["POST", *states, "DELETE"]
    assert_well_done(lab, operators)


class Killed(BaseException):
    """What ends the launcher in this process as SIGKILL would: nothing is written any more."""


class Mortal(LocalStorage):
    """A storage whose process dies right before, or right after, its n-th write."""

    left = 0

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
        return Mortal(folder)

    def _count(self) -> None:
        if threading.current_thread() is threading.main_thread():
            Mortal.left -= 1
            if Mortal.left == 0:
                raise Killed


def survive(lab: Lab, moment: int) -> bool:
    """Launch, die at a moment, and launch again to the end; tell whether it died at all."""
    config = lab.settings()
    folder = lab.workdir.local_path()
    assert folder is not None
    mortal, died = Mortal(folder), False
    with lab.operators(config, *SCRIPT) as operators:
        Mortal.left = moment
        try:
            Lab(lab.server, mortal, Ears()).launch(config)
        except Killed:
            died = True
        Mortal.left = 0
        result = lab.launch(config)
        assert result["step"] == STEPS
    assert_well_done(lab, operators, jobs=len(operators.jobs))
    assert len(operators.jobs) == 1 or not died
    return died


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 9, 15, 21, 27, 33])
def test_a_launcher_that_dies_between_two_writes_loses_and_repeats_nothing(lab: Lab, moment: int) -> None:
    survive(lab, moment)


@pytest.mark.proof
def test_a_launcher_that_dies_at_every_write_loses_and_repeats_nothing(tmp_path: Path) -> None:
    for moment in range(1, 200):
        server = ApiServer()
        lab = Lab(server, open_storage(str(tmp_path / str(moment))), Ears())
        died = survive(lab, moment)
        server.stop()
        if not died:
            assert moment > 20
            return
    raise AssertionError("it has no end")
