"""The TrainJobs of a run against an API server: one at a time, adopted or replaced by whichever launcher is next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from components.accounting.ledger import Pool
from components.errors import ConfigError, DarkroomError
from pipeline.launch import render
from pipeline.launch.attempts import Attempts
from pipeline.launch.books.earlier_trainings import TRAINING
from pipeline.launch.context import LaunchContext
from pipeline.launch.jobs import TrainJobs, failure, is_complete
from pipeline.launch.observer import ClusterObserver
from pipeline.launch.policy import initial_state
from pipeline.launch.state import KEY, LaunchEnd, StateFile
from tests.cluster.harness import Harness

NOW = 1000.0


class Launcher:
    """The part of a launcher that manages jobs; the next one shares its storage and its cluster."""

    def __init__(self, harness: Harness, prices: Mapping[Pool, float] | None = None, **changes: Any) -> None:
        config, cluster = harness.settings(**changes), harness.cluster()
        data = ("base", "key", "digest", harness.progress)
        context = LaunchContext(config, harness.workdir, *data, prices or {}, wall_clock=lambda: NOW)
        self.state_file = StateFile(context.run)
        self.fresh_state = initial_state(context.limits, NOW)
        attempts = Attempts(context, self.state_file, cluster, ClusterObserver(cluster, "label"))
        self.jobs = TrainJobs(context, self.state_file, cluster, attempts)

    def submit(self) -> str:
        self.jobs.recover()
        self.jobs.submit()
        assert self.state_file.record.job is not None
        return self.state_file.record.job.name


def only_job(harness: Harness) -> dict[str, Any]:
    (job,) = harness.server.store.list("trainjobs")
    return job


def launcher_of(job: dict[str, Any]) -> str:
    name: str = job["metadata"]["annotations"][render.LAUNCHER]
    return name


def test_a_job_is_followed_with_its_first_attempt(harness: Harness) -> None:
    launcher = Launcher(harness)
    name = launcher.submit()
    job, attempt = launcher.state_file.record.job, launcher.state_file.record.attempt
    assert job is not None
    assert attempt is not None
    assert (job.name, job.uid, job.pool, job.nodes) == (name, only_job(harness)["metadata"]["uid"], "spot", 2)
    assert (attempt.number, attempt.job) == (0, job)
    assert name.endswith("-1")
    read_again = StateFile(harness.run(harness.settings())).record
    assert launcher.state_file.record == read_again, "the next launcher reads the same"


def test_a_job_that_no_state_file_has_is_adopted_as_it_is(harness: Harness) -> None:
    launcher = Launcher(harness)
    launcher.jobs.recover()
    launcher.state_file.update(jobs=4, state=replace(launcher.fresh_state, pool="on-demand", nodes=1))
    launcher.jobs.submit()
    first_launcher = launcher_of(only_job(harness))
    harness.run(harness.settings()).delete(KEY)
    second = Launcher(harness)
    second.jobs.recover()
    record = second.state_file.record
    assert record.job is not None
    assert (record.job.name, record.job.pool, record.job.nodes, record.jobs) == (
        only_job(harness)["metadata"]["name"], "on-demand", 1, 5,
    )  # fmt: skip
    assert second.state_file.state.pool == "on-demand"
    assert record.attempt is not None
    assert launcher_of(only_job(harness)) != first_launcher


def test_a_launcher_that_was_killed_before_it_wrote_down_its_job_causes_no_second_one(harness: Harness) -> None:
    first = Launcher(harness)
    first.jobs.recover()
    before = first.state_file.record
    first.jobs.submit()
    StateFile(harness.run(harness.settings())).update(**vars(before))
    second = Launcher(harness)
    second.jobs.recover()
    assert second.state_file.record.job is not None
    assert second.state_file.record.job.uid == only_job(harness)["metadata"]["uid"]
    assert second.state_file.record.jobs == 1


def test_a_job_of_other_settings_or_one_that_is_terminating_is_not_followed(harness: Harness) -> None:
    name = Launcher(harness).submit()
    harness.server.store.update("trainjobs", name, lambda job: job["metadata"].update(deletionTimestamp="now"))
    launcher = Launcher(harness)
    launcher.jobs.recover()
    assert (launcher.state_file.record.job, launcher.state_file.record.deleted_job) == (None, name)

    second = launcher.submit()
    assert second != name
    other = Launcher(harness, placement={"gpus": 4})
    other.jobs.recover()
    assert (other.state_file.record.job, other.state_file.record.deleted_job) == (None, second)
    assert harness.server.store.list("trainjobs") == []


@pytest.mark.parametrize(
    "change", [{"annotations": {render.WORKDIR: "s3://other"}}, {"labels": {render.RUN_LABEL: "x"}}]
)
def test_a_job_of_another_run_is_never_changed(harness: Harness, change: dict[str, Any]) -> None:
    name = Launcher(harness).submit()
    kind, values = next(iter(change.items()))
    harness.server.store.update("trainjobs", name, lambda job: job["metadata"][kind].update(values))
    harness.run(harness.settings()).delete(KEY)
    with pytest.raises(ConfigError, match=name):
        Launcher(harness).jobs.recover()
    assert only_job(harness)["metadata"]["name"] == name


def test_the_deletion_of_a_job_is_complete_once_its_jobset_is_gone(harness: Harness) -> None:
    launcher = Launcher(harness)
    name = launcher.submit()
    harness.server.store.create("jobsets", {"metadata": {"name": name}})
    launcher.jobs.delete("fallback")
    assert (launcher.state_file.record.job, launcher.state_file.record.deleted_job) == (None, name)
    assert not launcher.jobs.is_deletion_complete()
    assert launcher.state_file.record.deleted_job == name
    harness.server.store.delete("jobsets", name)
    assert launcher.jobs.is_deletion_complete()
    assert launcher.state_file.record.deleted_job is None
    launcher.jobs.submit()
    assert only_job(harness)["metadata"]["name"] == name.removesuffix("-1") + "-2", "no name is used twice"


def test_the_newest_launcher_is_in_charge_even_if_the_report_is_older(harness: Harness) -> None:
    earlier = Launcher(harness)
    earlier.submit()
    report = only_job(harness)
    newest = Launcher(harness)
    newest.jobs.recover()
    job = newest.state_file.record.job
    assert job is not None
    newest.jobs.check_launcher(job, report)
    with pytest.raises(DarkroomError, match=re.escape(launcher_of(only_job(harness)))):
        earlier.jobs.check_launcher(job, only_job(harness))


def test_a_price_of_the_settings_takes_precedence_even_if_it_is_0(harness: Harness) -> None:
    free = Launcher(harness, {"spot": 3.0}, launch={"usd_per_hour": 0.0}).jobs
    assert free.usd_per_hour("spot") == 0.0
    listed = Launcher(harness, {"spot": 3.0}, launch={"usd_per_hour": None}).jobs
    assert (listed.usd_per_hour("spot"), listed.usd_per_hour("on-demand")) == (3.0, 0.0)


def test_a_launch_goes_on_with_the_state_of_the_last_one_until_that_is_over(harness: Harness) -> None:
    run = harness.run(harness.settings())
    run.write_json(TRAINING, {"dataset": "digest"})
    state_file = StateFile(run)
    state = replace(Launcher(harness).fresh_state, started_at=7.0, crashes=3, preemptions=9)
    for reason, is_kept in (("finished", True), ("failed", True), ("budget", False), ("deadline", False)):
        state_file.update(state=state, end=LaunchEnd(reason), is_over=False)
        launcher = Launcher(harness)
        launcher.jobs.recover()
        assert (launcher.state_file.record.end is not None) == is_kept
        assert launcher.state_file.state == state, "the last launch is not over"

    state_file.update(state=state, end=None, is_over=True, attempts=5, job_attempts=2)
    launcher = Launcher(harness)
    launcher.jobs.recover()
    assert launcher.state_file.state == replace(launcher.fresh_state, started_at=7.0)
    record = launcher.state_file.record
    assert (record.attempts, record.job_attempts, record.is_over) == (0, 0, False)


@pytest.mark.parametrize(
    ("conditions", "complete", "is_fatal"),
    [
        ([], False, None),
        ([("Complete", "True", "AllJobsCompleted")], True, None),
        ([("Complete", "False", ""), ("Failed", "False", "")], False, None),
        ([("Suspended", "True", ""), ("Failed", "True", "ReachedMaxRestarts")], False, False),
        ([("Failed", "True", "FailJobSetFailurePolicyAction")], False, True),
    ],
)
def test_a_job_is_over_by_a_condition_that_is_true(
    conditions: list[tuple[str, str, str]], complete: bool, is_fatal: bool | None
) -> None:
    names = ("type", "status", "reason")
    job = {"status": {"conditions": [{**dict(zip(names, one, strict=True)), "message": "m"} for one in conditions]}}
    problem = failure(job)
    assert is_complete(job) is complete
    assert (problem[1] if problem is not None else None) is is_fatal
