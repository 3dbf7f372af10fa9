"""Training on this machine: start the ranks, start them again after a preemption or a crash, keep the ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from components.accounting.ledger import read_ledger, spent
from components.errors import Preempted
from components.progress import Progress
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.launch import accounting
from pipeline.launch.accounting import EVENTS, Life, Machines
from pipeline.launch.policy import End, Sight, Standing, Terms, after, decide, first

Clock = Callable[[], float]

# What the agent and the ranks tell that their own journal does not hold.
_TOLD = frozenset({"stop-asked", "stop-unsaved", "hung", "ranks-killed", "restarting", "no-notices"})


def launch(
    settings: RunConfig,
    workdir: Storage,
    base_model: str,
    encoding_key: str,
    dataset: str,
    progress: Progress,
    clock: Clock = time.monotonic,
) -> dict[str, Any]:
    """Train to the last step, however often the ranks are stopped on the way.

    Args:
        settings: The run.
        workdir: Where it keeps its things.
        base_model: The model to start from.
        encoding_key: Names the dataset's folder.
        dataset: Digest of the dataset; another one than last time begins the training anew.
        progress: Told what the trainer tells.
        clock: Seconds that never go backwards.

    Returns:
        The last ``step``, how many ``attempts`` this call took, and what ``stopped`` it before its end, if anything:
        ``budget`` or ``deadline``.

    Raises:
        ConfigError: Where the trainer refuses its settings.
        DataError: Where the trainer refuses its data.
        Preempted: Where this process itself was asked to stop; the state is saved.
        DarkroomError: Where it crashes more often than the settings allow, or the budget ends before anything is saved.
    """
    run = workdir.child(f"runs/{settings.run}")
    accounting.begin(run, dataset)
    with tempfile.TemporaryDirectory() as folder, _Stop().listening() as stop:
        config = Path(folder) / "train.json"
        config.write_text(settings.train.model_dump_json())
        command = [sys.executable, "-m", "components.train", "--workdir", workdir.url, "--run", settings.run]
        command += ["--config", str(config), "--encoding-key", encoding_key, "--dataset", dataset]
        command += ["--base-model", base_model, "--seed", str(settings.seed), "--parent-pid", str(os.getpid())]
        return _attempts(command, settings, run, stop, progress, clock)


def _attempts(
    command: list[str], settings: RunConfig, run: Storage, stop: _Stop, progress: Progress, clock: Clock
) -> dict[str, Any]:
    terms = Terms(settings.launch, settings.placement)
    standing = first(terms, time.time(), accounting.committed_step(run))
    ended, attempts = clock(), 0
    while True:
        attempt = _Attempt(accounting.next_attempt(run), settings, run, progress, standing, clock)
        why = attempt.reason_to_stop("none")
        if why is None:
            attempts += 1
            code = attempt.run(command, stop, idle=clock() - ended)
            ended, why = clock(), attempt.stopping
            if code == 0:
                return {"step": settings.train.steps, "attempts": attempts, "stopped": None}
            standing, action = after(standing, End(code, False, accounting.committed_step(run)), terms)
            if action.why == "refused":
                raise accounting.refusal(code, attempt.last_words())
            if stop.asked:
                raise Preempted("asked to stop while training; the state is saved, start again to continue")
            if action.do == "fail" and why is None:
                raise accounting.given_up(standing, code, settings.launch, attempt.last_words())
        if why is not None:
            return {"step": accounting.stopped_at(run, why, settings.launch), "attempts": attempts, "stopped": why}


@dataclass
class _Stop:
    """Notes that this process was asked to stop, and passes that on to the ranks."""

    asked: bool = False
    agent: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[_Stop]:
        kept = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self.agent is not None:
            self.agent.send_signal(signal.SIGTERM)


@dataclass
class _Attempt:
    """One life of the gang, and the account of where its time went."""

    number: int
    settings: RunConfig
    run_folder: Storage
    progress: Progress
    standing: Standing
    clock: Clock
    stopping: str | None = None  # why it was asked to stop before its end
    ranks: dict[int, int] = field(default_factory=dict)  # process id of each rank
    told: list[dict[str, Any]] = field(default_factory=list)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    began: float = 0.0

    def run(self, command: list[str], stop: _Stop, idle: float) -> int:
        """Run the gang once and return its exit code; ``idle`` is how long nothing ran before, in seconds."""
        start = accounting.committed_step(self.run_folder)
        self.began = self.clock()
        with subprocess.Popen(  # noqa: S603 - no shell
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as agent:
            stop.agent = agent
            if stop.asked:
                agent.send_signal(signal.SIGTERM)
            assert agent.stdout is not None
            for line in agent.stdout:
                self._hear(line)
                if self.stopping is None and (why := self.reason_to_stop("running")) is not None:
                    self.stopping = why
                    agent.send_signal(signal.SIGTERM)
        stop.agent = None
        if self.ranks:  # otherwise the training was finished before, and there is nothing to account for
            ended, wall = time.time(), self.clock() - self.began
            life = Life(self.number, ended - wall, ended, agent.returncode, start, {"idle": idle}, self.told)
            closed = accounting.close(self.run_folder, life, self._machines())
            self.progress.event("attempt-ended", **closed)
        return agent.returncode

    def last_words(self) -> str:
        """Return the last lines that were no events: the error that ended the gang."""
        return "\n".join(self.said) or "it said nothing"

    def reason_to_stop(self, phase: Literal["none", "running"]) -> str | None:
        """Return why the settings let training go on no further, if they do not."""
        launch = self.settings.launch
        if launch.budget_usd is None and launch.deadline_hours is None:
            return None
        rate = self._machines().usd_per_hour / 3600
        paid = spent(read_ledger(self.run_folder))
        if phase == "running":
            paid += rate * (self.clock() - self.began)
        sight = Sight(time.time(), phase, scheduled=1, spent=paid, rate=rate)
        action = decide(self.standing, sight, Terms(launch, self.settings.placement))[1]
        return action.why if action.do == "stop" else None

    def _machines(self) -> Machines:
        return Machines(1, "local", None, self.settings.launch.usd_per_hour or 0.0)

    def _hear(self, line: str) -> None:
        try:
            event = json.loads(line)
            name = event.pop("event")
        except (ValueError, KeyError, AttributeError, TypeError):
            self.said.append(line.rstrip())
            return
        if name == "rank-started":
            if not self.ranks:
                started = {"time": time.time(), "event": "attempt-started", "ranks": self.settings.train.ranks}
                accounting.record(self.run_folder, [started], self.number)
            self.ranks[event["rank"]] = event["pid"]
        elif name == "step":
            self._drill(event["step"])
        elif name in _TOLD:  # kept until the end: the trainer is the one writer of the events while it runs
            self.told.append({"time": time.time(), "event": name, **event})
        self.progress.event(name, **event)

    def _drill(self, step: int) -> None:
        """Send the notice that a reclaimed machine gets, once in the life of a run."""
        drill = self.settings.launch.spot_drill
        if drill.step is None or step < drill.step:
            return
        known = [*self.told, *accounting.lines(self.run_folder, EVENTS)]
        if any(event["event"] == "spot-notice" for event in known):
            return
        os.kill(self.ranks[drill.rank], signal.SIGTERM)
        self.told.append({"time": time.time(), "event": "spot-notice", "step": step, "rank": drill.rank})
        self.progress.event("spot-notice", step=step, rank=drill.rank)
