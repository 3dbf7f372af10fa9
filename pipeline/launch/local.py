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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from components import checkpoints
from components.errors import ConfigError, DarkroomError, DataError, NotFound, OutOfMemory, Preempted
from components.ledger import LEDGER, append_ledger, attempt_seconds, ledger_lines
from components.progress import Progress
from components.storage import Storage
from pipeline.config import RunConfig

_RECORDS = ("events.jsonl", "metrics.jsonl", LEDGER)
_FATAL: dict[int, type[DarkroomError]] = {ConfigError.exit_code: ConfigError, DataError.exit_code: DataError}


def launch(
    settings: RunConfig, workdir: Storage, base_model: str, encoding_key: str, dataset: str, progress: Progress
) -> dict[str, Any]:
    """Train to the last step, however often the ranks are stopped on the way.

    Args:
        settings: The run.
        workdir: Where it keeps its things.
        base_model: The model to start from.
        encoding_key: Names the dataset's folder.
        dataset: Digest of the dataset; another one than last time begins the training anew.
        progress: Told what the trainer tells.

    Returns:
        The last ``step`` and how many ``attempts`` this call took.

    Raises:
        ConfigError: Where the trainer refuses its settings.
        DataError: Where the trainer refuses its data.
        Preempted: Where this process itself was asked to stop; the state is saved.
        DarkroomError: Where it crashes more often than the settings allow.
    """
    run = workdir.child(f"runs/{settings.run}")
    _begin(run, dataset)
    with tempfile.TemporaryDirectory() as folder, _Stop().listening() as stop:
        config = Path(folder) / "train.json"
        config.write_text(settings.train.model_dump_json())
        command = [sys.executable, "-m", "components.train", "--workdir", workdir.url, "--run", settings.run]
        command += ["--config", str(config), "--encoding-key", encoding_key, "--base-model", base_model]
        command += ["--seed", str(settings.seed), "--parent-pid", str(os.getpid())]
        attempts = _attempts(command, settings, run, stop, progress)
    return {"step": settings.train.steps, "attempts": attempts}


def _attempts(command: list[str], settings: RunConfig, run: Storage, stop: _Stop, progress: Progress) -> int:
    preemptions = crashes = 0
    before = sum(event["event"] == "attempt-started" for event in _lines(run, "events.jsonl"))
    ended = time.monotonic()
    while True:
        attempt = _Attempt(before + preemptions + crashes, settings, run, progress)
        code = attempt.run(command, stop, idle=time.monotonic() - ended)
        ended = time.monotonic()
        if code == 0:
            return preemptions + crashes + 1
        if code in _FATAL:
            raise _FATAL[code](attempt.last_words())
        # A batch that did not fit comes back half as large, so it mends itself after a few starts.
        if code in (Preempted.exit_code, OutOfMemory.exit_code):
            preemptions += 1
        else:
            crashes += 1
        if stop.asked:
            raise Preempted("asked to stop while training; the state is saved, start again to continue")
        if preemptions > settings.launch.max_preemptions or crashes > settings.launch.max_crashes:
            raise DarkroomError(
                f"training ended with exit code {code} after {preemptions} preemptions and {crashes} crashes; "
                f"launch.max_preemptions is {settings.launch.max_preemptions}, launch.max_crashes is "
                f"{settings.launch.max_crashes}. Its last words:\n{attempt.last_words()}"
            )


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
    ranks: dict[int, int] = field(default_factory=dict)  # process id of each rank
    told: list[dict[str, Any]] = field(default_factory=list)
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def run(self, command: list[str], stop: _Stop, idle: float) -> int:
        """Run the gang once and return its exit code; ``idle`` is how long nothing ran before, in seconds."""
        first = _committed_step(self.run_folder)
        began = time.monotonic()
        with subprocess.Popen(  # noqa: S603 - no shell
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as agent:
            stop.agent = agent
            if stop.asked:
                agent.send_signal(signal.SIGTERM)
            assert agent.stdout is not None
            for line in agent.stdout:
                self._hear(line)
        stop.agent = None
        if self.ranks:  # otherwise the training was finished before, and there is nothing to account for
            self._close(agent.returncode, first, wall=time.monotonic() - began, idle=idle)
        return agent.returncode

    def last_words(self) -> str:
        """Return the last lines that were no events: the error that ended the gang."""
        return "\n".join(self.said) or "it said nothing"

    def _hear(self, line: str) -> None:
        try:
            event = json.loads(line)
            name = event.pop("event")
        except (ValueError, KeyError, AttributeError, TypeError):
            self.said.append(line.rstrip())
            return
        if name == "rank-started":
            if not self.ranks:
                self._record([{"time": time.time(), "event": "attempt-started", "ranks": self.settings.train.ranks}])
            self.ranks[event["rank"]] = event["pid"]
        elif name == "step":
            self._drill(event["step"])
        self.progress.event(name, **event)

    def _drill(self, step: int) -> None:
        """Send the notice that a reclaimed machine gets, once in the life of a run."""
        launch = self.settings.launch
        if launch.spot_drill_step is None or step < launch.spot_drill_step or self.told:
            return
        if any(event["event"] == "spot-notice" for event in _lines(self.run_folder, "events.jsonl")):
            return
        os.kill(self.ranks[launch.spot_drill_rank], signal.SIGTERM)
        self.told.append({"time": time.time(), "event": "spot-notice", "step": step, "rank": launch.spot_drill_rank})
        self.progress.event("spot-notice", step=step, rank=launch.spot_drill_rank)

    def _close(self, code: int, first: int, wall: float, idle: float) -> None:
        ended, saved = time.time(), _committed_step(self.run_folder)
        steps = [line["step"] for line in _lines(self.run_folder, "metrics.jsonl")]
        last = max([saved, *(step for step in steps if step > first)])
        events = [event for event in _lines(self.run_folder, "events.jsonl") if event["time"] >= ended - wall]
        crashed = code not in (0, Preempted.exit_code)
        seconds = attempt_seconds(events, ended - wall, ended, saved, crashed)
        seconds["idle"] += idle
        append_ledger(self.run_folder, ledger_lines(self.number, seconds))
        lost_steps = max(0, last - saved)
        told = {"event": "attempt-ended", "exit_code": code, "step": last, "steps_lost": lost_steps}
        self._record([*self.told, {"time": ended, **told}])
        self.progress.event("attempt-ended", exit_code=code, step=last, steps_lost=lost_steps)

    def _record(self, events: list[dict[str, Any]]) -> None:
        self.run_folder.append_lines("events.jsonl", [{**event, "attempt": self.number} for event in events])


def _begin(run: Storage, dataset: str) -> None:
    """Start the records anew where this training is not the one that they tell of."""
    try:
        same = run.read_json("training.json")["dataset"] == dataset
    except NotFound:
        same = False
    if not same:
        for name in _RECORDS:
            run.delete(name)
        run.delete_tree("samples")
        run.write_json("training.json", {"dataset": dataset})


def _committed_step(run: Storage) -> int:
    newest = checkpoints.newest(run)
    return newest.step if newest is not None else 0


def _lines(run: Storage, name: str) -> list[dict[str, Any]]:
    return list(run.read_lines(name)) if run.exists(name) else []
