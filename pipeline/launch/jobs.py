"""The TrainJobs of one run: making, adopting and deleting them, so that there is never more than one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.errors import ConfigError, DarkroomError
from components.progress import Progress
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.launch import accounting, render
from pipeline.launch.api import Cluster
from pipeline.launch.attempts import Attempts
from pipeline.launch.pods import read_time
from pipeline.launch.policy import Terms, first
from pipeline.launch.render import Training
from pipeline.launch.state import Job, Memory, Notebook
from pipeline.placement import Pool

_FAIL_JOBSET = "FailJobSetFailurePolicyAction"


class Jobs:
    """Makes and deletes the jobs of a run.

    Args:
        settings: The run.
        training: What is to be trained.
        run: The run's folder.
        notebook: Remembers the job.
        cluster: Where.
        attempts: Told when machines are asked for.
        progress: Told what happens.
        prices: $ per hour of a machine, by pool.
        me: This launcher's name.
    """

    def __init__(
        self,
        settings: RunConfig,
        training: Training,
        run: Storage,
        notebook: Notebook,
        cluster: Cluster,
        attempts: Attempts,
        progress: Progress,
        prices: Mapping[Pool, float],
        me: str,
    ) -> None:
        self._settings = settings
        self._training = training
        self._run = run
        self._notebook = notebook
        self._cluster = cluster
        self._attempts = attempts
        self._progress = progress
        self._prices = prices
        self._me = me
        self._owner = cluster.owner(os.environ)

    def begin(self) -> None:
        """Find out where the run stands, by memory and by the jobs that are there, and take over what is this run's.

        Raises:
            ConfigError: Where there is a budget, but no price to hold against it.
        """
        self._check_price()
        self._recall()
        known = self._notebook.memory.job
        for job in self._cluster.find_all(f"{render.JOB_LABEL}={render.job_label(self._training)}"):
            name, uid = job["metadata"]["name"], job["metadata"]["uid"]
            if not self._is_mine(job):
                raise self._collision(name)
            if not self._is_current(job) or (known is not None and uid != known.uid):
                self._progress.event("job-withdrawn", job=name, why="changed")
                self._cluster.delete(name, uid)
                self._notebook.note(left=name, **({"job": None} if known is not None and uid == known.uid else {}))
            elif known is None:
                known = self._adopt(job)
            else:
                self._take_over(name)
        accounting.begin(self._run, self._training.dataset)

    def submit(self) -> None:
        """Make a job on such machines as the standing says; one that is there already is gone on with.

        Raises:
            ConfigError: Where somebody else's job has its name, or the cluster refuses it.
        """
        standing = self._notebook.standing
        number = self._notebook.memory.number + 1
        self._notebook.note(number=number)
        pool, nodes = standing.pool, standing.nodes
        job = render.render(self._training, self._settings.placement, pool, nodes, number, self._owner, os.environ)
        job["metadata"]["annotations"][render.LAUNCHER] = self._me
        name = job["metadata"]["name"]
        made = self._cluster.create(job)
        if made is None:
            made = self._cluster.find(name)
            if made is None:
                return  # it has just gone; the next look decides anew
            if not self._is_mine(made):
                raise self._collision(name)
            self._adopt(made)
            return
        self._follow(Job(name, made["metadata"]["uid"], pool, nodes, self.price(pool)), made)
        self._progress.event("job-submitted", job=name, pool=pool, nodes=nodes)

    def withdraw(self, why: str) -> None:
        """Delete the job that is followed, if any; its processes save within their grace."""
        job = self._notebook.memory.job
        if job is None:
            return
        self._cluster.delete(job.name, job.uid)
        self._notebook.note(job=None, left=job.name)
        self._progress.event("job-withdrawn", job=job.name, why=why)

    def look_up(self, job: Job) -> dict[str, Any] | None:
        """Ask the cluster for a job that no news has told of yet, or not any more."""
        found = self._cluster.find(job.name)
        return found if found is not None and found["metadata"]["uid"] == job.uid else None

    def has_left(self) -> bool:
        """Tell whether nothing of the job before can make pods any more."""
        left = self._notebook.memory.left
        if left is not None and self._cluster.has_jobset(left):
            return False
        self._notebook.note(left=None)
        return True

    def check_launcher(self, job: Job, found: Mapping[str, Any]) -> None:
        """Make sure that no newer launcher follows the job.

        Raises:
            DarkroomError: Where one does.
        """
        if _launcher(found) == self._me:
            return
        newest = self.look_up(job)  # the news may be older than this launcher
        if newest is not None and _launcher(newest) != self._me:
            raise DarkroomError(
                f"{_launcher(newest)} follows {job.name} now, so this launcher ends; let one pipeline at a time run "
                f"{self._training.run}"
            )

    def price(self, pool: Pool) -> float:
        """Return what a machine of a pool costs, in $ per hour; 0 where that is not known."""
        return self._known_price(pool) or 0.0

    def _known_price(self, pool: Pool) -> float | None:
        """Return a price as the settings say it, or else the price list."""
        given = self._settings.launch.usd_per_hour
        return given if given is not None else self._prices.get(pool)

    def _check_price(self) -> None:
        launch, placement = self._settings.launch, self._settings.placement
        unknown = sorted({p for p in (placement.first_pool, "on-demand") if self._known_price(p) is None})
        if launch.budget_usd is not None and unknown:
            machine = placement.instance or "any type"
            raise ConfigError(
                f"launch.budget_usd is {launch.budget_usd:g} $, but what a machine of {machine} costs "
                f"({', '.join(unknown)}) is not known; set placement.instance to one of the price list "
                "(placement.prices), or launch.usd_per_hour"
            )

    def _recall(self) -> None:
        """Go on with what is remembered; a launch that had come to its end, and settings that changed, begin anew."""
        memory, now = self._notebook.memory, time.time()
        if memory.ending is not None and memory.ending.why not in ("done", "failed"):
            self._notebook.note(ending=None)  # it is decided anew
        fresh = first(Terms(self._settings.launch, self._settings.placement), now, accounting.committed_step(self._run))
        if memory.standing is None or not accounting.is_same(self._run, self._training.dataset):
            self._notebook.note(standing=fresh, attempt=None, ending=None, finished=False)
        elif memory.finished:
            kept = Memory(number=memory.number, job=memory.job, left=memory.left, attempt=memory.attempt)
            self._notebook.note(**{**vars(kept), "standing": replace(fresh, began=memory.standing.began)})

    def _adopt(self, job: Mapping[str, Any]) -> Job:
        """Go on with a job that is not remembered: a launcher was killed right after it had made it."""
        meta, notes = job["metadata"], job["metadata"]["annotations"]
        pool: Pool = "spot" if notes.get(render.POOL) == "spot" else "on-demand"
        nodes, number = int(notes.get(render.NODES, 1)), int(notes.get(render.NUMBER, 0))
        memory = self._notebook.memory
        standing = replace(self._notebook.standing, pool=pool, nodes=nodes)
        self._notebook.note(standing=standing, number=max(number, memory.number))
        self._take_over(meta["name"])
        found = Job(meta["name"], meta["uid"], pool, nodes, self.price(pool))
        self._follow(found, job)
        self._progress.event("job-adopted", job=found.name)
        return found

    def _follow(self, job: Job, made: Mapping[str, Any]) -> None:
        # Noted at once: who is killed after a job is known, but not its attempt, would never account for it.
        asked = min(time.time(), read_time(made["metadata"]["creationTimestamp"]))
        self._notebook.note(job=job, judged=0, attempt=self._attempts.begin(job, asked))

    def _take_over(self, name: str) -> None:
        """Put this launcher's name on a job, and hand it to the workflow that this launcher belongs to."""
        meta: dict[str, Any] = {"annotations": {render.LAUNCHER: self._me}}
        if self._owner is not None:
            meta["ownerReferences"] = [render.owner_reference(self._owner)]
        self._cluster.patch(name, {"metadata": meta})

    def _is_mine(self, job: Mapping[str, Any]) -> bool:
        meta = job["metadata"]
        notes, labels = meta.get("annotations") or {}, meta.get("labels") or {}
        return (
            notes.get(render.WORKDIR) == self._training.workdir and labels.get(render.RUN_LABEL) == self._training.run
        )

    def _is_current(self, job: Mapping[str, Any]) -> bool:
        """Tell whether a job is what this launcher would submit in its place."""
        meta, notes = job["metadata"], job["metadata"]["annotations"]
        pool: Pool = "spot" if notes.get(render.POOL) == "spot" else "on-demand"
        nodes = int(notes.get(render.NODES, 1))
        wanted = render.render(self._training, self._settings.placement, pool, nodes, 0, None, os.environ)
        same = all(notes.get(key) == wanted["metadata"]["annotations"][key] for key in (render.SPEC, render.DATASET))
        return same and "deletionTimestamp" not in meta

    def _collision(self, name: str) -> ConfigError:
        return ConfigError(
            f"TrainJob {name} in namespace {self._cluster.namespace} has the name of this run's job, but was not made "
            f"for run {self._training.run} in {self._training.workdir}; delete it, or give the run another name"
        )


def is_complete(job: Mapping[str, Any]) -> bool:
    """Tell whether a job says that training has come to its end."""
    return _condition(job, "Complete") is not None


def why_failed(job: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return why a job has failed, and whether its failure policy forbids to start again; None while it has not."""
    found = _condition(job, "Failed")
    if found is None:
        return None
    return f"{found.get('reason')}: {found.get('message')}", found.get("reason") == _FAIL_JOBSET


def _condition(job: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


def _launcher(job: Mapping[str, Any]) -> str | None:
    found: str | None = (job["metadata"].get("annotations") or {}).get(render.LAUNCHER)
    return found
