"""The attempts of a training on the cluster: which pods make one, what it costs by now, and closing its books."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from components.accounting.ledger import append_ledger, ledger_lines, read_ledger, spent
from components.errors import EXIT_DONE, Preempted
from components.progress import Progress
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.launch import accounting, render
from pipeline.launch.accounting import Life, Machines
from pipeline.launch.api import Cluster
from pipeline.launch.pods import KILLED, Gang, Pod, gang_seconds
from pipeline.launch.policy import End
from pipeline.launch.state import Job, Notebook, Open
from pipeline.launch.view import View

# Only the launcher writes there; it becomes part of the events once nothing runs.
JOURNAL = "launch-events.jsonl"
_SILENT = (EXIT_DONE, Preempted.exit_code)


class Bill(NamedTuple):
    """What the run has cost by now in $, and what the machines that are held cost per second."""

    spent: float
    rate: float


class Closed(NamedTuple):
    """An attempt that is in the books now.

    Attributes:
        end: How it ended.
        said: Its last words.
        then: The attempt that comes next, where the job goes on.
    """

    end: End
    said: str
    then: Open | None


class Attempts:
    """Follows one attempt after the other.

    Args:
        settings: The run.
        run: The run's folder.
        notebook: Remembers the attempt that is open.
        cluster: Where its pods are.
        view: What is seen of them.
        progress: Told how attempts end.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        settings: RunConfig,
        run: Storage,
        notebook: Notebook,
        cluster: Cluster,
        view: View,
        progress: Progress,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._run = run
        self._notebook = notebook
        self._cluster = cluster
        self._view = view
        self._progress = progress
        self._clock = clock
        self._paid: float | None = None
        self._stuck_since: float | None = None

    @property
    def gang(self) -> Gang:
        """The pods of the attempt that is open; none where there is none."""
        attempt = self._notebook.memory.attempt
        return attempt.gang if attempt is not None else Gang({})

    def begin(self, job: Job, asked: float) -> Open:
        """Return a job's first attempt, to be noted; its machines are asked for since ``asked``."""
        return Open(accounting.next_attempt(self._run), job, asked, accounting.committed_step(self._run))

    def follow(self, is_over: bool) -> Closed | None:
        """Take in what is seen of the pods, and close the books of the attempt once its gang has ended.

        Args:
            is_over: Whether no more pods can join it.

        Returns:
            The attempt that was closed, to be noted; None where none was.
        """
        attempt = self._notebook.memory.attempt
        if attempt is None:
            return None
        gang = attempt.gang
        while (told := self._view.peek()) is not None and (_is_others(attempt, told) or gang.owns(told)):
            pod, deleted = self._view.take()
            if not _is_others(attempt, pod):
                gang = gang.seen(pod).gone(pod.uid, self._clock()) if deleted else gang.seen(pod)
        successor = self._view.peek()
        gang = self._without_missing(gang)
        if successor is not None:
            gang = gang.ended_before(successor.created)
        self._notebook.note(attempt=replace(attempt, gang=gang))
        whole = is_over or successor is not None or len(gang.pods) >= attempt.job.nodes
        goes_on = successor is not None or not (is_over or gang.fate == "done")
        return self._close(goes_on) if gang.is_over and whole else None

    def drop(self) -> None:
        """Close the attempt that is open although no gang of it ever ran: its machines were waited for in vain."""
        attempt = self._notebook.memory.attempt
        if attempt is None:
            return
        waited = {"pending": max(0.0, self._clock() - attempt.asked)}
        machines = self._machines(attempt.job)
        priced = (machines.nodes, machines.pool, machines.instance, machines.usd_per_hour)
        append_ledger(self._run, ledger_lines(attempt.number, waited, *priced))
        self._notebook.note(attempt=None)

    def bill(self) -> Bill:
        """Return what the run has cost by now."""
        if self._paid is None:
            self._paid = spent(read_ledger(self._run))
        attempt, gang = self._notebook.memory.attempt, self.gang
        began = gang.began_to_cost
        if attempt is None or began is None or gang.is_over:
            return Bill(self._paid, 0.0)
        rate = attempt.job.nodes * attempt.job.usd_per_hour / 3600
        return Bill(self._paid + rate * max(0.0, self._clock() - began), rate)

    def stuck(self) -> str | None:
        """Return what keeps containers from starting, once it has done so for a while."""
        found, now = self.gang.stuck, self._clock()
        if found is None:
            self._stuck_since = None
            return None
        since = self._stuck_since = self._stuck_since if self._stuck_since is not None else now
        return found if now - since >= self._settings.launch.stuck_minutes * 60 else None

    def _without_missing(self, gang: Gang) -> Gang:
        """Return the gang with those pods ended that went while nobody looked; nothing tells of them any more."""
        for uid in gang.pods:
            if not self._view.has_pod(uid):
                gang = gang.gone(uid, self._clock())
        return gang

    def _close(self, goes_on: bool) -> Closed:
        attempt = self._notebook.memory.attempt
        assert attempt is not None
        gang = attempt.gang
        said = self._last_words(gang)
        before = gang_seconds(gang, attempt.asked)
        began = min(max(attempt.asked, attempt.asked + sum(before.values())), gang.ended)
        code = gang.code if gang.teller is not None else accounting.told_end(self._run, began, KILLED)
        ranks = attempt.job.nodes * render.processes(self._settings.train, self._settings.placement)
        started: dict[str, Any] = {"time": began, "event": "attempt-started", "ranks": ranks}
        started |= {"nodes": attempt.job.nodes, "pool": attempt.job.pool}
        told = [started] if gang.began_to_run is not None else []
        life = Life(attempt.number, began, max(gang.ended, began), code, attempt.first, before, told)
        closed = accounting.close(self._run, life, self._machines(attempt.job), JOURNAL)
        end = End(code, gang.taken, accounting.committed_step(self._run))
        old = tuple(uid for uid in (*attempt.old, *gang.pods) if self._view.has_pod(uid))
        after = Open(attempt.number + 1, attempt.job, life.ended, end.step, old=old) if goes_on else None
        self._paid = None
        self._progress.event("attempt-ended", **closed)
        return Closed(end, said, after)

    def _last_words(self, gang: Gang) -> str:
        pod = gang.teller
        if pod is None or pod.code in _SILENT:
            return ""
        said = pod.said or self._cluster.log(pod.name)
        spoken = [line for line in said.splitlines() if not line.startswith('{"event"')]
        return "\n".join(spoken) or "it said nothing"

    def _machines(self, job: Job) -> Machines:
        return Machines(job.nodes, job.pool, self._settings.placement.instance, job.usd_per_hour)


def _is_others(attempt: Open, pod: Pod) -> bool:
    """Tell whether a pod belongs to an attempt that is closed, or to another job."""
    return pod.job != attempt.job.name or pod.uid in attempt.old
