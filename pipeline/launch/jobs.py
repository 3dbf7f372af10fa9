"""The TrainJobs of one run: they are submitted, adopted and deleted here, so that there is never more than one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.accounting.ledger import Pool
from components.errors import ConfigError, DarkroomError
from pipeline.launch import render
from pipeline.launch.api import Cluster, Json
from pipeline.launch.attempts import Attempts
from pipeline.launch.books import accounting
from pipeline.launch.books.earlier_trainings import has_records_of
from pipeline.launch.context import LaunchContext
from pipeline.launch.pods import read_time
from pipeline.launch.policy import initial_state
from pipeline.launch.state import LaunchRecord, StateFile, TrainJobRecord

_FAIL_JOBSET = "FailJobSetFailurePolicyAction"


class TrainJobs:
    """Submits and deletes the TrainJobs of a run.

    Args:
        context: The training.
        state_file: Keeps the job that is followed.
        cluster: The cluster.
        attempts: Opens the first attempt of a job.
    """

    def __init__(self, context: LaunchContext, state_file: StateFile, cluster: Cluster, attempts: Attempts) -> None:
        self._context = context
        self._arguments = context.arguments
        self._placement = context.settings.placement
        self._state_file = state_file
        self._cluster = cluster
        self._attempts = attempts
        self._owner = cluster.workflow_owner(os.environ)
        # Unique among all launchers, so that an older one notices that a newer one follows the job.
        self._launcher_id = f"{os.environ.get('KFP_POD_NAME') or socket.gethostname()}/{os.getpid()}/{time.time_ns()}"

    def recover(self) -> None:
        """Restore where the run stands, from the state file and from the jobs that exist, and adopt this run's job.

        Raises:
            ConfigError: If there is a budget, but a price is not known; or if a job with the run's label is not this
                run's.
        """
        self._check_prices()
        self._restore_state()
        followed = self._state_file.record.job
        for job in self._cluster.list_jobs(label_selector(self._context)):
            name, uid = job["metadata"]["name"], job["metadata"]["uid"]
            is_followed = followed is not None and uid == followed.uid
            if not self._is_own(job):
                raise self._name_collision(name)
            if not self._is_current(job) or (followed is not None and not is_followed):
                self._report_deletion(name, "changed")
                self._cluster.delete_job(name, uid)
                self._state_file.update(deleted_job=name, **({"job": None} if is_followed else {}))
            elif followed is None:
                followed = self._adopt(job)
            else:
                self._claim(name)
        self._context.prepare_records()

    def submit(self) -> None:
        """Submit a job on the nodes of the launch state; if it exists already, it is adopted.

        Raises:
            ConfigError: If another run's job has its name, or the cluster rejects it.
        """
        state = self._state_file.state
        number = self._state_file.record.jobs + 1
        self._state_file.update(jobs=number)
        job = self._render(state.pool, state.nodes, number)
        job["metadata"]["annotations"][render.LAUNCHER] = self._launcher_id
        name = job["metadata"]["name"]
        created = self._cluster.create_job(job)
        if created is not None:
            uid = created["metadata"]["uid"]
            self._follow(TrainJobRecord(name, uid, state.pool, state.nodes, self.usd_per_hour(state.pool)), created)
            self._context.progress.event("job-submitted", job=name, pool=state.pool, nodes=state.nodes)
            return
        existing = self._cluster.get_job(name)
        if existing is None:
            return  # it was deleted in between; the next poll decides again
        if not self._is_own(existing):
            raise self._name_collision(name)
        self._adopt(existing)

    def delete(self, reason: str) -> None:
        """Delete the job that is followed, if there is one; its processes save within their grace period."""
        job = self._state_file.record.job
        if job is None:
            return
        self._cluster.delete_job(job.name, job.uid)
        self._state_file.update(job=None, deleted_job=job.name)
        self._report_deletion(job.name, reason)

    def fetch(self, job: TrainJobRecord) -> Json | None:
        """Read a job from the cluster; None if it does not exist any more."""
        fetched = self._cluster.get_job(job.name)
        return fetched if fetched is not None and fetched["metadata"]["uid"] == job.uid else None

    def is_deletion_complete(self) -> bool:
        """Tell whether the job that was deleted last can create no more pods."""
        deleted_job = self._state_file.record.deleted_job
        if deleted_job is not None and self._cluster.has_jobset(deleted_job):
            return False
        self._state_file.update(deleted_job=None)
        return True

    def check_launcher(self, record: TrainJobRecord, job: Mapping[str, Any]) -> None:
        """Make sure that no newer launcher follows the job.

        Raises:
            DarkroomError: If one does.
        """
        if _launcher_of(job) == self._launcher_id:
            return
        newest = self.fetch(record)  # what was observed may be older than this launcher
        if newest is not None and _launcher_of(newest) != self._launcher_id:
            raise DarkroomError(
                f"{_launcher_of(newest)} follows {record.name} now, so this launcher ends; run only one pipeline at a "
                f"time for {self._arguments.run}"
            )

    def usd_per_hour(self, pool: Pool) -> float:
        """Return the price of a node of a pool, in $ per hour; 0 if it is not known."""
        return self._price(pool) or 0.0

    def _price(self, pool: Pool) -> float | None:
        """Return a price of the settings, or else of the price list."""
        configured = self._context.settings.launch.usd_per_hour
        return configured if configured is not None else self._context.prices.get(pool)

    def _check_prices(self) -> None:
        budget, placement = self._context.settings.launch.budget_usd, self._placement
        pools: set[Pool] = {placement.first_pool, "on-demand"}
        unknown = sorted(pool for pool in pools if self._price(pool) is None)
        if budget is not None and unknown:
            raise ConfigError(
                f"launch.budget_usd is {budget:g} $, but the price of a node ({', '.join(unknown)}) of machine type "
                f"{placement.instance or 'any'} is not known; set placement.instance to one of the price list "
                "(placement.prices), or set launch.usd_per_hour"
            )

    def _restore_state(self) -> None:
        """Go on with the state file's state; start anew after a launch that is over, or on another dataset."""
        record, run = self._state_file.record, self._context.run
        if record.end is not None and record.end.reason not in ("finished", "failed"):
            self._state_file.update(end=None)  # the limits may have changed: it is decided again
        now = self._context.wall_clock()
        fresh = initial_state(self._context.limits, now, accounting.committed_step(run))
        if record.state is None or not has_records_of(run, self._context.dataset):
            self._attempts.close_for_good()  # its records are kept as those of an earlier training
            self._state_file.update(state=fresh, attempt=None, end=None, is_over=False)
        elif record.is_over:
            kept = LaunchRecord(
                jobs=record.jobs, job=record.job, deleted_job=record.deleted_job, attempt=record.attempt
            )
            state = replace(fresh, started_at=record.state.started_at)
            self._state_file.update(**{**vars(kept), "state": state})

    def _adopt(self, job: Json) -> TrainJobRecord:
        """Follow a job that is not in the state file: its launcher was killed right after it had submitted it."""
        meta, annotations = job["metadata"], job["metadata"]["annotations"]
        pool, nodes = _pool_of(job), int(annotations.get(render.NODES, 1))
        number = max(int(annotations.get(render.NUMBER, 0)), self._state_file.record.jobs)
        self._state_file.update(state=replace(self._state_file.state, pool=pool, nodes=nodes), jobs=number)
        self._claim(meta["name"])
        record = TrainJobRecord(meta["name"], meta["uid"], pool, nodes, self.usd_per_hour(pool))
        self._follow(record, job)
        self._context.progress.event("job-adopted", job=record.name)
        return record

    def _follow(self, record: TrainJobRecord, job: Json) -> None:
        # Job and attempt are written together: a job without an attempt would never be accounted for.
        requested_at = min(self._context.wall_clock(), read_time(job["metadata"]["creationTimestamp"]))
        self._state_file.update(job=record, job_attempts=0, attempt=self._attempts.begin(record, requested_at))

    def _claim(self, name: str) -> None:
        """Put this launcher's name on a job, and make the Workflow that this launcher belongs to its owner."""
        meta: dict[str, Any] = {"annotations": {render.LAUNCHER: self._launcher_id}}
        if self._owner is not None:
            meta["ownerReferences"] = [render.owner_reference(self._owner)]
        self._cluster.patch_job(name, {"metadata": meta})

    def _render(self, pool: Pool, nodes: int, number: int) -> Json:
        return render.render(self._arguments, self._placement, pool, nodes, number, self._owner, os.environ)

    def _is_own(self, job: Json) -> bool:
        meta = job["metadata"]
        workdir = (meta.get("annotations") or {}).get(render.WORKDIR)
        run = (meta.get("labels") or {}).get(render.RUN_LABEL)
        return (workdir, run) == (self._arguments.workdir, self._arguments.run)

    def _is_current(self, job: Json) -> bool:
        """Tell whether a job is the one that this launcher would submit instead of it."""
        meta, annotations = job["metadata"], job["metadata"]["annotations"]
        expected = self._render(_pool_of(job), int(annotations.get(render.NODES, 1)), 0)["metadata"]["annotations"]
        is_same = all(annotations.get(key) == expected[key] for key in (render.SPEC, render.DATASET))
        return is_same and "deletionTimestamp" not in meta

    def _name_collision(self, name: str) -> ConfigError:
        return ConfigError(
            f"TrainJob {name} in namespace {self._cluster.namespace} has the name of this run's job, but belongs to "
            f"another run than {self._arguments.run} in {self._arguments.workdir}; delete it, or rename the run"
        )

    def _report_deletion(self, name: str, reason: str) -> None:
        self._context.progress.event("job-deleted", job=name, reason=reason)


def label_selector(context: LaunchContext) -> str:
    """Return the selector of a run's jobs and pods."""
    return f"{render.JOB_LABEL}={render.job_label(context.arguments.run, context.arguments.workdir)}"


def is_complete(job: Mapping[str, Any]) -> bool:
    """Tell whether a job says that the training is complete."""
    return _condition(job, "Complete") is not None


def is_withdrawn(job: Mapping[str, Any]) -> bool:
    """Tell whether somebody wants the job to end: its launcher then does what it does when it is asked to stop."""
    return (job["metadata"].get("annotations") or {}).get(render.WITHDRAWN) is not None


def failure(job: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return why a job has failed, and whether its failure policy forbids a restart; None if it has not failed."""
    condition = _condition(job, "Failed")
    if condition is None:
        return None
    return f"{condition.get('reason')}: {condition.get('message')}", condition.get("reason") == _FAIL_JOBSET


def _condition(job: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


def _pool_of(job: Json) -> Pool:
    return "spot" if job["metadata"]["annotations"].get(render.POOL) == "spot" else "on-demand"


def _launcher_of(job: Mapping[str, Any]) -> str | None:
    launcher: str | None = (job["metadata"].get("annotations") or {}).get(render.LAUNCHER)
    return launcher
