"""Training on the cluster: submit a TrainJob, follow it to its end, and never have two of them.

What is true is in the cluster, and what must not be forgotten in ``runs/<run>/launch.json``; so a launcher that is
killed at any moment is replaced by its next start. The newest launcher of a run is the one that counts: it puts its
name on the job, and an older one that sees another's name there ends.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.errors import ConfigError, DarkroomError, Preempted
from components.progress import Progress
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.launch import accounting, render
from pipeline.launch.api import Cluster, connect
from pipeline.launch.attempts import JOURNAL, Attempts, Closed
from pipeline.launch.jobs import Jobs, is_complete, why_failed
from pipeline.launch.journal_tail import Tail
from pipeline.launch.policy import Action, End, Phase, Sight, Terms, after, decide
from pipeline.launch.render import Training
from pipeline.launch.state import Ending, Job, Notebook
from pipeline.launch.view import View
from pipeline.placement import Pool

_WARNINGS_EVERY_SECONDS = 30.0


def launch(
    settings: RunConfig,
    workdir: Storage,
    base_model: str,
    encoding_key: str,
    dataset: str,
    progress: Progress,
    cluster: Cluster | None = None,
    prices: Mapping[Pool, float] | None = None,
) -> dict[str, Any]:
    """Train on the cluster to the last step, however often its machines are taken away.

    Args:
        settings: The run.
        workdir: Where it keeps its things; the machines must reach it under the same name.
        base_model: The model to start from.
        encoding_key: Names the dataset's folder.
        dataset: Digest of the dataset; another one than last time begins the training anew.
        progress: Told what the trainer tells.
        cluster: Where; None: the one that this process is in, or that kubectl would speak to.
        prices: $ per hour of a machine, by pool; launch.usd_per_hour goes before it.

    Returns:
        The last ``step``, how many ``attempts`` there were, and what ``stopped`` it before its end, if anything:
        ``budget`` or ``deadline``.

    Raises:
        ConfigError: Where the trainer or the cluster refuses the settings.
        DataError: Where the trainer refuses its data.
        Preempted: Where this process was asked to stop; so was the training, which saves.
        ApiAway: Where the cluster does not answer for too long; the training goes on.
        DarkroomError: Where training fails more often than the settings allow, or the budget ends before anything is
            saved.
    """
    run = workdir.child(f"runs/{settings.run}")
    if cluster is None:
        cluster = connect(settings.placement.namespace, settings.launch.api_away_minutes * 60)
    training = Training(settings.run, workdir.url, base_model, encoding_key, dataset, settings.seed, settings.train)
    with View(cluster, f"{render.JOB_LABEL}={render.job_label(training)}") as view:
        return Launcher(settings, training, run, cluster, view, progress, prices or {}).run()


class Launcher:
    """Follows one run from where its memory says it is.

    Args:
        settings: The run.
        training: What is to be trained.
        run: The run's folder.
        cluster: Where.
        view: What is seen of it.
        progress: Told what happens.
        prices: $ per hour of a machine, by pool.
    """

    def __init__(
        self,
        settings: RunConfig,
        training: Training,
        run: Storage,
        cluster: Cluster,
        view: View,
        progress: Progress,
        prices: Mapping[Pool, float],
    ) -> None:
        self._settings = settings
        self._terms = Terms(settings.launch, settings.placement)
        self._training = training
        self._run = run
        self._cluster = cluster
        self._view = view
        self._progress = progress
        self._notebook = Notebook(run)
        me = f"{os.environ.get('KFP_POD_NAME') or socket.gethostname()}/{os.getpid()}/{time.time_ns()}"
        self._attempts = Attempts(settings, run, self._notebook, cluster, view, progress, time.time)
        self._jobs = Jobs(settings, training, run, self._notebook, cluster, self._attempts, progress, prices, me)
        self._warned: set[str] = set()
        self._next_warning = 0.0

    def run(self) -> dict[str, Any]:
        """Follow the run to its end; see `launch`."""
        if self._is_done():
            return {"step": self._settings.train.steps, "attempts": 0, "stopped": None}
        self._jobs.begin()
        tail = Tail(self._run, self._settings.train.steps, self._progress)
        result = None
        while result is None:
            knows_all = self._view.wait(self._settings.launch.poll_seconds)
            tail.tell()
            if knows_all:
                self._judge()
                result = self._go_on()
        return result

    def _is_done(self) -> bool:
        """Tell whether this very training has come to its last step before, so that no machine is needed."""
        known = self._notebook.memory.done == self._training.dataset
        return known and accounting.committed_step(self._run) >= self._settings.train.steps

    def _judge(self) -> None:
        """Look at the job and its pods: note what has ended, and what follows from that."""
        job = self._notebook.memory.job
        found = None
        if job is not None:
            found = self._view.job(job.uid) or self._jobs.look_up(job)
        if job is not None and found is not None:
            self._jobs.check_launcher(job, found)
        is_over = found is None or is_complete(found) or why_failed(found) is not None
        while (closed := self._attempts.follow(is_over)) is not None:
            self._judge_attempt(closed)
        if job is not None and is_over and not self._attempts.gang.is_running:
            self._judge_job(job, found)

    def _judge_attempt(self, closed: Closed) -> None:
        memory, standing = self._notebook.memory, self._notebook.standing
        action = Action("wait")
        if memory.job is not None:
            standing, action = after(standing, closed.end, self._terms)
        else:  # it was asked to end, which is nobody's fault
            standing = replace(standing, step=max(standing.step, closed.end.step))
        self._notebook.note(
            standing=standing, attempt=closed.then, judged=memory.judged + 1, attempts=memory.attempts + 1
        )
        if action.do == "fail":
            self._fail(closed.end.code, closed.said, action)

    def _judge_job(self, job: Job, found: Mapping[str, Any] | None) -> None:
        """Draw the conclusion from a job that has come to its end, or is gone."""
        memory = self._notebook.memory
        failed = why_failed(found) if found is not None else None
        if found is not None and failed is None:
            self._end(Ending("done"))
            return
        why, is_final = failed or (f"TrainJob {job.name} is gone", False)
        self._attempts.drop()
        self._progress.event("job-failed" if found is not None else "job-lost", job=job.name, why=why)
        if memory.ending is None and (is_final or memory.judged == 0):  # otherwise its attempts were judged
            code = ConfigError.exit_code if is_final else DarkroomError.exit_code
            standing = self._notebook.standing
            standing, action = after(standing, End(code, False, standing.step), self._terms)
            self._notebook.note(standing=standing)
            if action.do == "fail":
                self._fail(code, why, action)
        self._jobs.withdraw("failed")

    def _go_on(self) -> dict[str, Any] | None:
        """Do what is to be done next; return the result once that is nothing."""
        sight = self._sight()
        ending = self._notebook.memory.ending
        if ending is not None:
            return self._conclude(ending) if sight.phase == "none" else None
        standing, action = decide(self._notebook.standing, sight, self._terms)
        self._notebook.note(standing=standing)
        if action.do == "submit":
            self._jobs.submit()
        elif action.do == "withdraw":
            self._jobs.withdraw(action.why)
        elif action.do == "stop":
            self._end(Ending(action.why))
        elif action.do == "fail":
            self._end(
                Ending("failed", ConfigError.exit_code, f"a container of the training cannot start: {sight.stuck}")
            )
        elif sight.phase == "waiting":
            self._warn(sight.now)
        return None

    def _sight(self) -> Sight:
        job, gang, bill = self._notebook.memory.job, self._attempts.gang, self._attempts.bill()
        now, asked = time.time(), self._view.asked
        if job is not None:
            phase: Phase = "running" if gang.scheduled >= job.nodes else "waiting"
            return Sight(now, phase, gang.scheduled, bill.spent, bill.rate, asked, self._attempts.stuck())
        if self._view.living or not self._jobs.has_left():
            return Sight(now, "leaving", gang.scheduled, bill.spent, bill.rate, asked)
        standing = self._notebook.standing
        return Sight(now, "none", 0, bill.spent, standing.nodes * self._jobs.price(standing.pool) / 3600, asked)

    def _fail(self, code: int, said: str, action: Action) -> None:
        refused = action.why == "refused"
        error = accounting.given_up(self._notebook.standing, code, self._settings.launch, said)
        self._end(Ending("failed", code if refused else 0, said if refused else str(error)))

    def _end(self, ending: Ending) -> None:
        """Start nothing any more, and let what runs save and end."""
        self._notebook.note(ending=ending)
        self._jobs.withdraw(ending.why)

    def _conclude(self, ending: Ending) -> dict[str, Any]:
        """Close the books, now that nothing runs, and return or raise what came of it."""
        self._attempts.drop()
        accounting.merge(self._run, JOURNAL)
        attempts = self._notebook.memory.attempts
        is_whole = ending.why == "done" and accounting.committed_step(self._run) >= self._settings.train.steps
        done = self._training.dataset if is_whole else self._notebook.memory.done
        self._notebook.note(ending=None, finished=ending.why != "asked", done=done)
        if ending.why == "asked":
            raise Preempted("asked to stop while training; so was the training, start again to continue")
        if ending.why == "failed":
            raise accounting.refusal(ending.code, ending.message)
        stopped = None if ending.why == "done" else ending.why
        if stopped is None:
            self._check_result()
            return {"step": self._settings.train.steps, "attempts": attempts, "stopped": None}
        step = accounting.stopped_at(self._run, stopped, self._settings.launch)
        return {"step": step, "attempts": attempts, "stopped": stopped}

    def _check_result(self) -> None:
        step = accounting.committed_step(self._run)
        if step < self._settings.train.steps:
            raise ConfigError(
                f"training says that it is done, but the newest checkpoint in {self._run.url} is of step {step}, not "
                f"{self._settings.train.steps}; the machines must reach the workdir under this very name"
            )

    def _warn(self, now: float) -> None:
        """Tell what the cluster warns of, such as that no machine has room."""
        job = self._notebook.memory.job
        if job is None or now < self._next_warning:
            return
        self._next_warning = now + _WARNINGS_EVERY_SECONDS
        for identity, text in self._cluster.warnings(job.name):
            if identity not in self._warned:
                self._warned.add(identity)
                self._progress.event("cluster-warning", job=job.name, warning=text)
