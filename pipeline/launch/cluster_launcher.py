"""Training on the cluster: submit a TrainJob, follow it to its end, and never have two of them.

The cluster knows what runs, and ``runs/<run>/launch.json`` keeps what must not be forgotten. So a launcher may be
killed at any moment, and the next one goes on. The newest launcher of a run is in charge: it takes over the run's lease
and writes its name on the job, and an older one that finds another name there ends. A launcher that trains in processes
of its own machine does not give way: while it lives, a launcher on the cluster is rejected.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from components.errors import ConfigError, DarkroomError, Preempted
from components.storage.lease import TRAINING, acquire
from pipeline.cost.forecast import HOUR
from pipeline.launch.api import Cluster, Json, connect
from pipeline.launch.attempts import AttemptResult, Attempts
from pipeline.launch.books import accounting
from pipeline.launch.books.accounting import LAUNCH_EVENTS
from pipeline.launch.context import LaunchContext
from pipeline.launch.diagnosis import failures
from pipeline.launch.diagnosis.obstacles import Obstacles
from pipeline.launch.jobs import TrainJobs, failure, is_complete, is_withdrawn, label_selector
from pipeline.launch.observer import ClusterObserver
from pipeline.launch.policy import Action, GangExit, Observation, Phase, decide, record_exit
from pipeline.launch.run_tail import RunTail
from pipeline.launch.state import LaunchEnd, StateFile, TrainJobRecord

# Among launchers of this kind the newest has the lease.
_LEASE_KIND = "trainjob"


def launch(context: LaunchContext, cluster: Cluster | None = None) -> dict[str, Any]:
    """Train on the cluster to the last step, however often nodes are lost on the way.

    Args:
        context: The training.
        cluster: The cluster; None: the one that this process runs in, or that of the current kubectl context.

    Returns:
        The last ``step``, how many ``attempts`` there were, and what ``stopped`` the training before its end:
        ``budget``, ``deadline`` or None.

    Raises:
        ConfigError: If the trainer or the cluster rejects the settings, or the state file has another format.
        DataError: If the trainer rejects its data.
        Preempted: If this process was asked to stop; the training saves its state and ends, too. The books are closed,
            unless the training takes longer than launch.stop_seconds for that.
        ApiUnreachable: If the cluster does not answer for too long; the training goes on.
        LeaseHeld: If the run is trained elsewhere, not on a cluster.
        LeaseLost: If a newer launcher follows the run.
        DarkroomError: If training fails more often than the settings allow, or if the budget ends before a checkpoint
            is saved.
    """
    if cluster is None:
        settings = context.settings
        cluster = connect(settings.placement.namespace, settings.launch.api_away_minutes * 60)
    folder = context.workdir.child(f"runs/{context.settings.run}")
    lease = acquire(folder, TRAINING, f"the training of {context.settings.run}", kind=_LEASE_KIND)
    context = replace(context, lease=lease)
    label, seconds = label_selector(context), context.settings.launch.stop_seconds
    with lease.kept(lambda: None), ClusterObserver(cluster, label, stop_seconds=seconds) as observer:
        return Launcher(context, cluster, observer).run()


class Launcher:
    """Follows one run from where its state file says that it stands.

    Args:
        context: The training.
        cluster: The cluster.
        observer: Reports what changes there.
    """

    def __init__(self, context: LaunchContext, cluster: Cluster, observer: ClusterObserver) -> None:
        self._context = context
        self._run = context.run
        self._launch = context.settings.launch
        self._last_step = context.train.last_step
        self._progress = context.progress
        self._cluster = cluster
        self._observer = observer
        self._state_file = StateFile(context.run)
        self._attempts = Attempts(context, self._state_file, cluster, observer)
        self._jobs = TrainJobs(context, self._state_file, cluster, self._attempts)
        self._obstacles = Obstacles(cluster, context)

    def run(self) -> dict[str, Any]:
        """Follow the run to its end; see `launch`."""
        if self._is_trained():
            return {"step": self._last_step, "attempts": 0, "stopped": None}
        self._jobs.recover()
        tail = RunTail(self._run, self._last_step, self._progress)
        result = None
        while result is None:
            if self._context.lease is not None:
                self._context.lease.check()
            is_up_to_date = self._observer.wait(self._launch.poll_seconds)
            tail.report()
            if is_up_to_date:
                self._record_ends()
                result = self._act()
            if result is None and self._observer.must_stop_now:
                self._leave()
        return result

    def _leave(self) -> None:
        """End the training without waiting for it, and close the books: the pod of this process is killed soon.

        Raises:
            Preempted: If the training was told to end.
            ApiUnreachable: If it could not be; it goes on, and so do its books.
        """
        self._jobs.delete("stop-requested")
        running = self._attempts.close_early()
        self._progress.event("books-closed-early", running=running)
        if running == 0:  # otherwise they may still write events
            accounting.merge_events(self._run, LAUNCH_EVENTS)
        self._state_file.update(end=None, attempts=self._state_file.record.attempts + (running > 0))
        raise Preempted(
            f"asked to stop while training; {running} of its pods still save and end by themselves, and the time that "
            "takes is not in the books; start again to continue"
        )

    def _is_trained(self) -> bool:
        """Tell whether an earlier launch trained on this very dataset to the last step, so that no node is needed."""
        is_same = self._state_file.record.trained_dataset == self._context.dataset
        return is_same and accounting.committed_step(self._run) >= self._last_step

    def _record_ends(self) -> None:
        """Record which attempts, and whether the job, have ended, and what follows from that."""
        record = self._state_file.record.job
        job = None
        if record is not None:
            job = self._observer.job(record.uid) or self._jobs.fetch(record)
        if record is not None and job is not None:
            self._jobs.check_launcher(record, job)
            if is_withdrawn(job):
                self._observer.stop_requested = True
        is_over = job is None or is_complete(job) or failure(job) is not None
        while (result := self._attempts.follow(is_over)) is not None:
            self._record_attempt(result)
        if record is not None and is_over and not self._attempts.gang.is_running:
            self._record_job_end(record, job)

    def _record_attempt(self, result: AttemptResult) -> None:
        record, state = self._state_file.record, self._state_file.state
        action = Action("wait")
        if record.job is not None:
            state, action = record_exit(state, result.gang, self._context.limits)
        else:  # the launcher itself ended it by deleting the job, so it counts neither as preemption nor as crash
            state = replace(state, checkpoint_step=max(state.checkpoint_step, result.gang.checkpoint_step))
        self._state_file.update(
            state=state,
            attempt=result.next_attempt,
            job_attempts=record.job_attempts + 1,
            attempts=record.attempts + 1,
        )
        if action.kind == "fail":
            self._fail(result.gang.exit_code, result.log_tail, action)

    def _record_job_end(self, job_record: TrainJobRecord, job: Json | None) -> None:
        """Decide what follows from a job that is complete, has failed or was deleted."""
        record = self._state_file.record
        job_failure = failure(job) if job is not None else None
        if job is not None and job_failure is None:
            self._end(LaunchEnd("finished"))
            return
        reason, is_final = job_failure or (f"TrainJob {job_record.name} was deleted", False)
        self._attempts.abandon()
        self._progress.event("job-failed" if job is not None else "job-lost", job=job_record.name, reason=reason)
        if record.end is None and (is_final or record.job_attempts == 0):  # otherwise its attempts were recorded
            exit_code = ConfigError.exit_code if is_final else DarkroomError.exit_code
            state = self._state_file.state
            gang = GangExit(exit_code, node_lost=False, checkpoint_step=state.checkpoint_step)
            state, action = record_exit(state, gang, self._context.limits)
            self._state_file.update(state=state)
            if action.kind == "fail":
                self._fail(exit_code, reason, action)
        self._jobs.delete("failed")

    def _act(self) -> dict[str, Any] | None:
        """Do what the policy decides; return the result once the launch is over."""
        observation = self._observe()
        end = self._state_file.record.end
        if end is not None:
            return self._conclude(end) if observation.phase == "none" else None
        state, action = decide(self._state_file.state, observation, self._context.limits)
        self._state_file.update(state=state)
        if action.kind == "submit":
            self._jobs.submit()
        elif action.kind == "replace":
            self._jobs.delete(action.reason)
        elif action.kind == "stop":
            self._end(LaunchEnd(action.reason))
        elif action.kind == "fail":
            self._end(LaunchEnd("failed", ConfigError.exit_code, self._cause(action, observation)))
        return None

    def _cause(self, action: Action, observation: Observation) -> str:
        """Return why the policy gives up a job that has never run."""
        if action.reason == "stuck":
            return f"a container of the training cannot start: {observation.stuck_reason}"
        return (
            f"the cluster gave the training its quota, but no pods in {self._launch.unstarted_minutes:g} minutes "
            f"(launch.unstarted_minutes), each time that it was submitted: {self._obstacles.summary}"
        )

    def _observe(self) -> Observation:
        job, nodes, cost = self._state_file.record.job, self._attempts.gang.scheduled_nodes, self._attempts.cost()
        now, stop_requested = self._context.wall_clock(), self._observer.stop_requested
        if job is not None:
            phase: Phase = "running" if nodes >= job.nodes else "waiting"
            attempt, stuck_reason = self._state_file.record.attempt, self._attempts.stuck_reason()
            unstarted_since = None
            if attempt is not None and phase == "waiting":
                fetched = self._observer.job(job.uid)
                is_suspended = fetched is not None and bool(fetched["spec"].get("suspend"))
                unstarted_since = self._obstacles.look(attempt, now, is_suspended)
            common = (now, phase, nodes, cost.usd, cost.usd_per_second, stop_requested)
            return Observation(*common, stuck_reason, unstarted_since)
        if self._observer.has_live_pods or not self._jobs.is_deletion_complete():
            return Observation(now, "terminating", nodes, cost.usd, cost.usd_per_second, stop_requested)
        state = self._state_file.state
        usd_per_second = state.nodes * self._jobs.usd_per_hour(state.pool) / HOUR
        return Observation(now, "none", 0, cost.usd, usd_per_second, stop_requested)

    def _fail(self, exit_code: int, log_tail: str, action: Action) -> None:
        if action.reason == "fatal":
            self._end(LaunchEnd("failed", exit_code, log_tail))
            return
        error = failures.restart_limit_error(self._state_file.state, exit_code, self._launch, log_tail)
        self._end(LaunchEnd("failed", message=str(error)))

    def _end(self, end: LaunchEnd) -> None:
        """Submit nothing more, and let the running processes save and end."""
        self._state_file.update(end=end)
        self._jobs.delete(end.reason)

    def _conclude(self, end: LaunchEnd) -> dict[str, Any]:
        """Close the books, now that nothing runs, and return the result or raise the error."""
        self._attempts.abandon()
        accounting.merge_events(self._run, LAUNCH_EVENTS)
        record = self._state_file.record
        is_trained = end.reason == "finished" and accounting.committed_step(self._run) >= self._last_step
        dataset = self._context.dataset if is_trained else record.trained_dataset
        self._state_file.update(end=None, is_over=end.reason != "stop-requested", trained_dataset=dataset)
        if end.reason == "stop-requested":
            raise Preempted("asked to stop while training; the training was stopped, too: start again to continue")
        if end.reason == "failed":
            raise failures.trainer_error(end.exit_code, end.message)
        if end.reason == "finished":
            self._check_last_step()
            return {"step": self._last_step, "attempts": record.attempts, "stopped": None}
        step = failures.step_when_stopped(self._run, end.reason, self._launch)
        return {"step": step, "attempts": record.attempts, "stopped": end.reason}

    def _check_last_step(self) -> None:
        step = accounting.committed_step(self._run)
        if step < self._last_step:
            raise ConfigError(
                f"the training reports that it is complete, but the newest checkpoint in {self._run.url} is of step "
                f"{step}, not {self._last_step}; the nodes must reach the workdir by this very name"
            )
