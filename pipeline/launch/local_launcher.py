"""Training on this machine: start the ranks, restart them after a preemption or a crash, and keep the ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, Any, Literal

from components.accounting.ledger import read_ledger, spent
from components.errors import EXIT_DONE, ConfigError, Preempted
from components.progress import Progress
from components.storage.lease import TRAINING, acquire
from components.storage.scratch import scratch_folder
from pipeline.cost.forecast import HOUR
from pipeline.launch.books import accounting
from pipeline.launch.books.accounting import EVENTS, PricedNodes
from pipeline.launch.books.local_books import LocalBooks
from pipeline.launch.context import LaunchContext
from pipeline.launch.diagnosis import failures
from pipeline.launch.policy import GangExit, LaunchState, Observation, decide, initial_state, record_exit
from pipeline.launch.state import KEY as STATE_KEY
from pipeline.launch.state import StateFile

# Events that the agent and the ranks print, but do not write to the run's events themselves.
_PRINTED_EVENTS = frozenset({"stop-asked", "stop-unsaved", "hung", "ranks-killed", "restarting", "no-notices"})
_LOG_LINES = 20
# How long nothing may be printed until the books and the budget are looked at all the same.
_QUIET_SECONDS = 1.0


def launch(context: LaunchContext) -> dict[str, Any]:
    """Train to the last step, however often the ranks are stopped on the way.

    Returns:
        The last ``step``, how many ``attempts`` this call took, and what ``stopped`` the training before its end:
        ``budget``, ``deadline`` or None.

    Raises:
        ConfigError: If the trainer rejects its settings, or a TrainJob of this run may still run.
        DataError: If the trainer rejects its data.
        LeaseHeld: If another launcher trains the same run.
        LeaseLost: If another launcher has taken the run over from this one.
        Preempted: If this process itself was asked to stop; the state is saved.
        DarkroomError: If the training crashes more often than the settings allow, or if the budget ends before a
            checkpoint is saved.
    """
    folder = context.workdir.child(f"runs/{context.settings.run}")
    lease = acquire(folder, TRAINING, f"the training of {context.settings.run}")
    stop = _StopRequest()
    with lease.kept(stop.kill), scratch_folder("train") as scratch, stop.listening():
        context = replace(context, lease=lease)
        _check_no_job(context)
        books = LocalBooks(context.run, context.clock, context.wall_clock, partial(_report_unwritten, context.progress))
        if (ended := books.recover()) is not None:
            context.progress.event("attempt-ended", **ended)
        context.prepare_records()
        config = scratch / "train.json"
        config.write_text(context.train.model_dump_json())
        command = [sys.executable, "-m", "components.train", *context.arguments.flags()]
        command += ["--config", str(config), "--parent-pid", str(os.getpid()), "--lease", str(lease.claim)]
        return _run_attempts(command, context, books, stop)


def _check_no_job(context: LaunchContext) -> None:
    """Check that no TrainJob of the run may still run: it does not end with its launcher, so no lease shows it.

    Raises:
        ConfigError: If one may.
    """
    job = StateFile(context.run).record.job
    if job is not None:
        raise ConfigError(
            f"TrainJob {job.name} trains {context.settings.run} on a cluster, or did when its launcher was killed; "
            f"start the run there again (launch.where=trainjob), or delete the job and {STATE_KEY} in {context.run.url}"
        )


def _report_unwritten(progress: Progress, problem: str) -> None:
    progress.event("books-unwritten", problem=problem)


def _run_attempts(command: list[str], context: LaunchContext, books: LocalBooks, stop: _StopRequest) -> dict[str, Any]:
    run, settings, limits = context.run, context.settings, context.limits
    started_at = accounting.first_started_at(run, default=context.wall_clock())
    state = initial_state(limits, started_at, accounting.committed_step(run))
    ended_at, attempts = context.clock(), 0
    while True:
        attempt = _LocalAttempt(accounting.next_attempt_number(run), context, state, books)
        stop_reason = attempt.reason_to_stop("none")
        if stop_reason is None:
            attempts += 1
            exit_code = attempt.run(command, stop, idle_seconds=context.clock() - ended_at)
            ended_at, stop_reason = context.clock(), attempt.stop_reason
            if exit_code == EXIT_DONE:
                return {"step": context.train.last_step, "attempts": attempts, "stopped": None}
            gang = GangExit(exit_code, node_lost=False, checkpoint_step=accounting.committed_step(run))
            state, action = record_exit(state, gang, limits)
            if action.reason == "fatal":
                raise failures.trainer_error(exit_code, attempt.log_tail())
            if stop.is_requested:
                raise Preempted("asked to stop while training; the state is saved, start again to continue")
            if action.kind == "fail" and stop_reason is None:
                raise failures.restart_limit_error(state, exit_code, settings.launch, attempt.log_tail())
        if stop_reason is not None:
            step = failures.step_when_stopped(run, stop_reason, settings.launch)
            return {"step": step, "attempts": attempts, "stopped": stop_reason}


@dataclass
class _StopRequest:
    """Notes that this process was asked to stop, and passes that on to the ranks."""

    is_requested: bool = False
    agent: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[_StopRequest]:
        handlers = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def kill(self) -> None:
        """End the ranks at once: they must save nothing any more."""
        if self.agent is not None:
            self.agent.kill()  # its ranks notice that it is gone

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.is_requested = True
        if self.agent is not None:
            self.agent.send_signal(signal.SIGTERM)


@dataclass
class _LocalAttempt:
    """One start of the ranks until all of them have ended, with an account of where the time went."""

    number: int
    context: LaunchContext
    state: LaunchState
    books: LocalBooks
    stop_reason: str | None = None  # why it was asked to stop before its end
    ranks: dict[int, int] = field(default_factory=dict)  # process id of each rank
    events: list[dict[str, Any]] = field(default_factory=list)
    log_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))

    def run(self, command: list[str], stop: _StopRequest, idle_seconds: float) -> int:
        """Run the ranks once and return their exit code; before that nothing ran for ``idle_seconds``.

        Raises:
            LeaseLost: If another launcher has taken the run over; nothing more was written then.
        """
        train = self.context.settings.train
        start_step = max(accounting.committed_step(self.context.run), train.continued.step)
        self.books.open(self.number, start_step, idle_seconds, self._priced_nodes().usd_per_hour, train.ranks)
        with subprocess.Popen(  # noqa: S603 - no shell
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as agent:
            stop.agent = agent
            if stop.is_requested:
                agent.send_signal(signal.SIGTERM)
            try:
                self._follow(agent)
            except BaseException:
                agent.kill()  # nobody would account for what its ranks still do
                raise
        stop.agent = None
        self._check_lease()
        if self.ranks:
            self.context.progress.event("attempt-ended", **self.books.close(agent.returncode, self.events))
        else:  # the training was complete before, and there is nothing to account for
            self.books.discard()
        return agent.returncode

    def _follow(self, agent: subprocess.Popen[str]) -> None:
        """Read what the ranks print until they have ended, keep the books, and ask them to stop at a limit."""
        assert agent.stdout is not None
        for line in _lines(agent.stdout):
            if line is not None:
                self._read_line(line)
            self.books.beat()
            if self.stop_reason is None and (reason := self.reason_to_stop("running")) is not None:
                self.stop_reason = reason
                agent.send_signal(signal.SIGTERM)

    def log_tail(self) -> str:
        """Return the last lines that were not events: the error that ended the ranks."""
        return "\n".join(self.log_lines) or "(the log is empty)"

    def reason_to_stop(self, phase: Literal["none", "running"]) -> str | None:
        """Return ``budget`` or ``deadline`` if one of them ends the training."""
        launch = self.context.settings.launch
        if launch.budget_usd is None and launch.deadline_hours is None:
            return None
        usd_per_second = self._priced_nodes().usd_per_hour / HOUR
        usd = self._spent_before
        if phase == "running":
            usd += usd_per_second * self.books.seconds
        observation = Observation(
            self.context.wall_clock(), phase, scheduled_nodes=1, spent_usd=usd, usd_per_second=usd_per_second
        )
        _state, action = decide(self.state, observation, self.context.limits)
        return action.reason if action.kind == "stop" else None

    @cached_property
    def _spent_before(self) -> float:
        """What the attempts before this one have cost, in $."""
        return spent(read_ledger(self.context.run))

    def _check_lease(self) -> None:
        if self.context.lease is not None:
            self.context.lease.confirm()

    def _priced_nodes(self) -> PricedNodes:
        return PricedNodes(1, "local", None, self.context.settings.launch.usd_per_hour or 0.0)

    def _read_line(self, line: str) -> None:
        try:
            event = json.loads(line)
            name = event.pop("event")
        except (ValueError, KeyError, AttributeError, TypeError):
            if not failures.is_noise(line):
                self.log_lines.append(line.rstrip())
            return
        if name == "rank-started":
            self._note_rank(event["rank"], event["pid"])
        elif name == "step":
            self._drill(event["step"])
        elif name in _PRINTED_EVENTS:  # written at the end: only the trainer may write events while it runs
            self.events.append({"time": self.context.wall_clock(), "event": name, **event})
        self.context.progress.event(name, **event)

    def _note_rank(self, rank: int, pid: int) -> None:
        if not self.ranks:
            ranks = self.context.settings.train.ranks
            start = {"time": self.context.wall_clock(), "event": "attempt-started", "ranks": ranks}
            accounting.append_events(self.context.run, [start], self.number)
        self.ranks[rank] = pid

    def _drill(self, step: int) -> None:
        """Send the notice that a reclaimed node gets, once per run."""
        drill = self.context.settings.launch.spot_drill
        if drill.step is None or step < drill.step:
            return
        events = [*self.events, *accounting.read_lines(self.context.run, EVENTS)]
        if any(event["event"] == "spot-notice" for event in events):
            return
        os.kill(self.ranks[drill.rank], signal.SIGTERM)
        fields = {"step": step, "rank": drill.rank}
        self.events.append({"time": self.context.wall_clock(), "event": "spot-notice", **fields})
        self.context.progress.event("spot-notice", **fields)


def _lines(stream: IO[str]) -> Iterator[str | None]:
    """Yield each line of a stream until its end, and None now and then if there is none for a while."""
    inbox: SimpleQueue[str | None] = SimpleQueue()

    def listen() -> None:
        for line in stream:
            inbox.put(line)
        inbox.put(None)

    threading.Thread(target=listen, name="ranks' output", daemon=True).start()
    while True:
        try:
            line = inbox.get(timeout=_QUIET_SECONDS)
        except Empty:
            yield None
            continue
        if line is None:
            return
        yield line
