"""The attempts of a training on the cluster: which pods make one, what the run costs so far, and closing the books."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from components.accounting.ledger import append_ledger, read_ledger, spent
from components.errors import EXIT_DONE, Preempted
from pipeline.cost.forecast import HOUR
from pipeline.launch import render
from pipeline.launch.api import Cluster
from pipeline.launch.books import accounting
from pipeline.launch.books.accounting import LAUNCH_EVENTS, EndedAttempt, PricedNodes
from pipeline.launch.context import LaunchContext
from pipeline.launch.observer import ClusterObserver
from pipeline.launch.pods import KILLED, Gang, GangPod, startup_seconds
from pipeline.launch.policy import GangExit
from pipeline.launch.state import OpenAttempt, StateFile, TrainJobRecord

# How often the state file notes that the pods were watched.
WATCH_SECONDS = 60.0
# Kubernetes writes whole seconds: what a pod did in its last one is later than its end.
TIMESTAMP_SECONDS = 1.0
_CODES_WITHOUT_ERROR = (EXIT_DONE, Preempted.exit_code)


class RunCost(NamedTuple):
    """What the run has cost so far, and what the nodes that are held now cost."""

    usd: float
    usd_per_second: float


class AttemptResult(NamedTuple):
    """The result of an attempt whose books were closed.

    Attributes:
        gang: How its gang ended.
        log_tail: The end of the log that explains why.
        next_attempt: The attempt that follows, if the job goes on.
    """

    gang: GangExit
    log_tail: str
    next_attempt: OpenAttempt | None


class Attempts:
    """Follows one attempt after the other.

    Args:
        context: The training.
        state_file: Keeps the open attempt.
        cluster: Where its pods are.
        observer: Reports changes of the pods.
    """

    def __init__(
        self, context: LaunchContext, state_file: StateFile, cluster: Cluster, observer: ClusterObserver
    ) -> None:
        self._context = context
        self._run = context.run
        self._now = context.wall_clock
        self._state_file = state_file
        self._cluster = cluster
        self._observer = observer
        self._closed_usd: float | None = None
        self._stuck_since: float | None = None

    @property
    def gang(self) -> Gang:
        """The pods of the open attempt; empty if no attempt is open."""
        attempt = self._state_file.record.attempt
        return attempt.gang if attempt is not None else Gang({})

    def begin(self, job: TrainJobRecord, requested_at: float) -> OpenAttempt:
        """Return a job's first attempt, for the state file."""
        number = accounting.next_attempt_number(self._run)
        return OpenAttempt(number, job, requested_at, self._start_step(accounting.committed_step(self._run)))

    def follow(self, is_job_over: bool) -> AttemptResult | None:
        """Process the updates of pods, and close the books of the attempt if its gang has ended.

        Args:
            is_job_over: Whether no more pods can join the gang.

        Returns:
            The result of the attempt that was closed, for the state file; None if none was closed.
        """
        attempt = self._state_file.record.attempt
        if attempt is None:
            return None
        gang = self._mark_missing(attempt, self._process_updates(attempt))
        successor = self._observer.next_pod()
        if successor is not None:
            gang = gang.ended_by(successor.created_at)
        self._state_file.update(attempt=replace(attempt, gang=gang, watched_at=self._watched_at(attempt)))
        is_complete = is_job_over or successor is not None or len(gang.pods) >= attempt.job.nodes
        goes_on = successor is not None or not (is_job_over or gang.restart_kind == "finished")
        return self._close(goes_on) if gang.is_over and is_complete else None

    def abandon(self) -> None:
        """Close the open attempt, no gang of which ever ran: its nodes were waited for in vain."""
        attempt = self._state_file.record.attempt
        if attempt is None:
            return
        seconds = {"pending": max(0.0, self._now() - attempt.requested_at)}
        append_ledger(self._run, self._priced_nodes(attempt.job).ledger_lines(attempt.number, seconds))
        self._state_file.update(attempt=None)

    def close_for_good(self) -> None:
        """Close the open attempt of a training that does not go on, with what is known of its pods."""
        attempt = self._state_file.record.attempt
        if attempt is None or not attempt.gang.pods:
            self.abandon()
            return
        gang = self._mark_ended(attempt, attempt.gang, attempt.gang.pods)
        self._state_file.update(attempt=replace(attempt, gang=gang))
        self._close(goes_on=False)
        self._state_file.update(attempt=None)

    def close_early(self) -> int:
        """Close the open attempt as if it ended now, and return how many of its pods still run.

        For a launcher that must end before its training has: it saves and ends by itself, and what that takes from
        here on is in no books.
        """
        attempt = self._state_file.record.attempt
        if attempt is None or not attempt.gang.is_running:
            self.close_for_good()
            return 0
        gang, now = attempt.gang, self._now()
        running = [pod.uid for pod in gang.pods.values() if pod.ended_at is None]
        for uid in running:
            gang = gang.mark_deleted(uid, now)
        self._state_file.update(attempt=replace(attempt, gang=gang))
        self._close(goes_on=False)
        self._state_file.update(attempt=None)
        return len(running)

    def cost(self) -> RunCost:
        """Return what the run has cost so far."""
        if self._closed_usd is None:
            self._closed_usd = spent(read_ledger(self._run))
        attempt, gang = self._state_file.record.attempt, self.gang
        paid_since = gang.first_scheduled_at
        if attempt is None or paid_since is None or gang.is_over:
            return RunCost(self._closed_usd, 0.0)
        rate = attempt.job.nodes * attempt.job.usd_per_hour / HOUR
        return RunCost(self._closed_usd + rate * max(0.0, self._now() - paid_since), rate)

    def stuck_reason(self) -> str | None:
        """Return why a container cannot start, once that has lasted for launch.stuck_minutes."""
        reason, now = self.gang.stuck_reason, self._now()
        if reason is None:
            self._stuck_since = None
            return None
        if self._stuck_since is None:
            self._stuck_since = now
        return reason if now - self._stuck_since >= self._context.settings.launch.stuck_minutes * 60 else None

    def _process_updates(self, attempt: OpenAttempt) -> Gang:
        """Return the attempt's gang after all updates up to the first pod of the next attempt."""
        gang = attempt.gang
        while (pod := self._observer.next_pod()) is not None and (_is_other(attempt, pod) or gang.includes(pod)):
            pod, is_deleted = self._observer.take_pod_update()
            if not _is_other(attempt, pod):
                gang = gang.update(pod)
                gang = gang.mark_deleted(pod.uid, self._now()) if is_deleted else gang
        return gang

    def _watched_at(self, attempt: OpenAttempt) -> float:
        """Return when the pods were last watched, rounded so that the state file is not written all the time."""
        now = self._now()
        return attempt.watched_at if now - attempt.watched_at < WATCH_SECONDS else now

    def _mark_missing(self, attempt: OpenAttempt, gang: Gang) -> Gang:
        """Mark the pods that were deleted while no launcher was watching; no update of them will come.

        When they ended nobody saw. They are paid for until the last sign of them: a launcher that watched them, or
        something that their trainer wrote.
        """
        return self._mark_ended(attempt, gang, [uid for uid in gang.pods if not self._observer.has_pod(uid)])

    def _mark_ended(self, attempt: OpenAttempt, gang: Gang, uids: Iterable[str]) -> Gang:
        """Mark pods as ended at the last sign of them, if they have not ended before."""
        pods = [pod for uid in uids if (pod := gang.pods[uid]).ended_at is None]
        if pods:
            last_sign = accounting.last_sign(self._run, attempt.requested_at, self._now())
        for pod in pods:
            signs = [pod.created_at, pod.scheduled_at or 0.0, pod.started_at or 0.0, attempt.watched_at, last_sign]
            gang = gang.mark_deleted(pod.uid, max(signs))
        return gang

    def _close(self, goes_on: bool) -> AttemptResult:
        attempt = self._state_file.record.attempt
        assert attempt is not None
        gang, job = attempt.gang, attempt.job
        log_tail = self._log_tail(gang)
        ended = self._ended_attempt(attempt)
        fields = accounting.close_attempt(self._run, ended, self._priced_nodes(job), LAUNCH_EVENTS)
        gang_exit = GangExit(ended.exit_code, gang.node_lost, accounting.committed_step(self._run))
        pods = tuple(uid for uid in (*attempt.earlier_pods, *gang.pods) if self._observer.has_pod(uid))
        start = (attempt.number + 1, job, ended.ended_at, self._start_step(gang_exit.checkpoint_step))
        next_attempt = OpenAttempt(*start, earlier_pods=pods) if goes_on else None
        self._closed_usd = None
        self._context.progress.event("attempt-ended", **fields)
        return AttemptResult(gang_exit, log_tail, next_attempt)

    def _start_step(self, committed_step: int) -> int:
        """Return the step that an attempt begins after, given that of the run's own newest checkpoint."""
        return max(committed_step, self._context.settings.train.continued.step)

    def _ended_attempt(self, attempt: OpenAttempt) -> EndedAttempt:
        gang, job, settings = attempt.gang, attempt.job, self._context.settings
        startup = startup_seconds(gang, attempt.requested_at)
        started_at = min(attempt.requested_at + sum(startup.values()), gang.ended_at)
        exit_code = gang.exit_code
        if gang.decisive_pod is None:
            exit_code = accounting.exit_code_from_events(self._run, started_at, KILLED)
        ended_at = accounting.last_event_within(self._run, gang.ended_at, TIMESTAMP_SECONDS)
        ranks = job.nodes * render.ranks_per_node(settings.train, settings.placement)
        start: dict[str, Any] = {"time": started_at, "event": "attempt-started", "ranks": ranks}
        start |= {"nodes": job.nodes, "pool": job.pool}
        return EndedAttempt(
            number=attempt.number,
            started_at=started_at,
            ended_at=ended_at,
            exit_code=exit_code,
            start_step=attempt.start_step,
            earlier_seconds=startup,
            events=[start] if gang.last_started_at is not None else [],
        )

    def _log_tail(self, gang: Gang) -> str:
        pod = gang.decisive_pod
        if pod is None or pod.exit_code in _CODES_WITHOUT_ERROR:
            return ""
        log = pod.log_tail or self._cluster.pod_log(pod.name)
        messages = [line for line in log.splitlines() if not line.startswith('{"event"')]
        return "\n".join(messages) or "(the log is empty)"

    def _priced_nodes(self, job: TrainJobRecord) -> PricedNodes:
        return PricedNodes(job.nodes, job.pool, self._context.settings.placement.instance, job.usd_per_hour)


def _is_other(attempt: OpenAttempt, pod: GangPod) -> bool:
    """Tell whether a pod belongs to a closed attempt or to another job."""
    return pod.job != attempt.job.name or pod.uid in attempt.earlier_pods
