"""A local launcher that is killed at any moment: what it ran is paid for, once, and no two train the same run.

The launcher is real and so is its death; its trainer only pretends, so that many lives take seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.accounting.ledger import read_ledger, spent
from components.storage.base import Storage
from components.storage.open import open_storage

ROOT = Path(__file__).parents[3]
BEAT, USD_PER_HOUR = 0.5, 3600.0  # 1 $ per second
# How long it takes until the ranks notice that their launcher is gone, and until a signal has reached a process.
SLACK = 0.5
# Kept back from a budget, to save.
GRACE = 5
LAUNCHER = """
import json, sys
from pathlib import Path
from components.errors import DarkroomError
from components.progress import Progress
from components.storage import lease
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.launch.books import local_books
from pipeline.launch.context import LaunchContext
from pipeline.launch.local_launcher import launch

request = json.loads(sys.argv[1])
local_books.BEAT_SECONDS = lease.BEAT_SECONDS = request["beat"]
lease.CONFIRM_SECONDS = 0.0
sys.executable = request["trainer"]
settings = RunConfig.parse(request["settings"])
Progress().event("ready")
try:
    print(launch(LaunchContext(settings, open_storage(request["workdir"]), "base", "key", "data", Progress())))
except DarkroomError as error:
    print("ended:", error, flush=True)
    sys.exit(error.exit_code)
"""
# It steps twenty times a second until it is asked to stop or its launcher is gone; all of it is in vain.
TRAINER = """
import json, os, signal, sys, time
workdir, run = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--workdir", "--run"))
folder = f"{workdir}/runs/{run}"
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
parent = os.getppid()
def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
def write(name, **fields):
    with open(f"{folder}/{name}.jsonl", "a") as file:
        file.write(json.dumps(fields) + "\\n")
tell("rank-started", rank=0, pid=os.getpid())
write("events", time=time.time(), event="training", step=0)
step = 0
while not asked and os.getppid() == parent:
    time.sleep(0.05)
    step += 1
    write("metrics", step=step)
    tell("step", step=step)
sys.exit(75)
"""


class Place:
    """A workdir with one run, and launchers of it."""

    def __init__(self, folder: Path) -> None:
        trainer = folder / "trainer"
        program = folder / "trainer.py"
        program.write_text(TRAINER)
        trainer.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{program}" "$@"\n')
        trainer.chmod(trainer.stat().st_mode | stat.S_IXUSR)
        self.workdir = folder / "work"
        self._trainer = str(trainer)
        self._budget: float | None = None
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def run(self) -> Storage:
        runs = self.workdir / "runs"
        return open_storage(str(next(path for path in runs.iterdir())))

    @property
    def usd(self) -> float:
        return spent(read_ledger(self.run))

    def start(self, budget: float | None = None) -> subprocess.Popen[str]:
        launch = {"usd_per_hour": USD_PER_HOUR, "budget_usd": budget, "poll_seconds": 0.1}
        settings = {"name": "mortal", "ingest": {"source": "unused"}, "launch": launch}
        settings |= {"placement": {"grace_seconds": GRACE}} if budget else {}
        request = {"settings": settings, "workdir": str(self.workdir), "trainer": self._trainer, "beat": BEAT}
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, json.dumps(request)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for process in place.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with process:
            pass


def wait_for(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Wait until a launcher reports an event."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("{") and json.loads(line)["event"] == event:
            found: dict[str, Any] = json.loads(line)
            return found
    raise AssertionError("".join(lines))


@pytest.mark.slow
def test_the_time_of_killed_launchers_is_paid_for_and_no_more(place: Place) -> None:
    chance = random.Random(os.environ.get("BOOKS_SEED", "1"))
    least = most = 0.0
    lives = int(os.environ.get("BOOKS_LIVES", "5"))
    for _ in range(lives):
        process = place.start()
        wait_for(process, "ready")
        began = time.monotonic()
        wait_for(process, "rank-started")
        trained = time.monotonic()
        time.sleep(chance.uniform(0.0, 2.5))
        least += time.monotonic() - trained
        os.killpg(process.pid, signal.SIGKILL)  # the launcher and what it started
        process.wait()
        most += time.monotonic() - began
    process = place.start(budget=most + GRACE + 2.0)
    wait_for(process, "ready")
    before = time.monotonic()
    with process:
        output, _ = process.communicate()
    took = time.monotonic() - before
    assert "training was stopped by its budget" in output, output
    # The budget counts the killed lives: had it not, this one would have gone on for as long as them all.
    ledger = place.usd
    last = sum(line.usd for line in read_ledger(place.run) if line.attempt == lives)
    assert least - lives * (BEAT + SLACK) <= ledger - last <= most
    assert ledger <= most + GRACE + 2.0
    assert last <= took
    attempts = {line.attempt for line in read_ledger(place.run)}
    assert attempts == set(range(lives + 1))
    ends = [event["attempt"] for event in place.run.read_lines("events.jsonl") if event["event"] == "attempt-ended"]
    assert ends == list(range(lives + 1))


@pytest.mark.slow
def test_a_second_launcher_is_rejected_and_the_first_goes_on(place: Place) -> None:
    first = place.start()
    wait_for(first, "step")
    second = place.start()
    with second:
        output, _ = second.communicate()
    assert second.returncode == 74
    assert f"is being run by process {first.pid} on " in output
    wait_for(first, "step")
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    with first:
        output, _ = first.communicate()
    assert first.returncode == 75, output
    steps = [line["step"] for line in place.run.read_lines("metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    third = place.start()
    wait_for(third, "step")


@pytest.mark.slow
def test_a_launcher_that_lost_the_run_stops_and_writes_nothing_more(place: Place) -> None:
    process = place.start()
    wait_for(process, "step")
    os.killpg(process.pid, signal.SIGSTOP)
    # As if its machine had been away for so long that another one took the run over.
    place.run.write("leases/training/000000002.json", b"{}")
    os.killpg(process.pid, signal.SIGCONT)
    with process:
        output, _ = process.communicate()
    assert process.returncode == 70, output
    assert "another process has taken over" in output
    assert read_ledger(place.run) == ()
    assert place.run.exists("local-attempt.json"), "whoever took the run over closes its books"
