"""The jobs of a run against an API server: one at a time, adopted or replaced by whoever launches next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline.launch.view import View
from tests.cluster.lab import Ears, Lab

from components.errors import ConfigError, DarkroomError
from components.storage.open import open_storage
from pipeline.launch import accounting, render
from pipeline.launch.attempts import Attempts
from pipeline.launch.jobs import Jobs, is_complete, why_failed
from pipeline.launch.policy import Terms, first
from pipeline.launch.state import KEY, Ending, Notebook
from pipeline.placement import Pool
from tests.cluster.api_server import ApiServer


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    server = ApiServer()
    yield Lab(server, open_storage(str(tmp_path)), Ears())
    server.stop()


class Launcher:
    """What one launcher knows and does of jobs; the next one shares its store and its cluster."""

    def __init__(
        self,
        lab: Lab,
        me: str = "me",
        dataset: str = "digest",
        prices: Mapping[Pool, float] | None = None,
        **changes: Any,
    ) -> None:
        config = lab.settings(**changes)
        run, cluster = lab.run(config), lab.cluster()
        self.training = render.Training(config.run, lab.workdir.url, "base", "key", dataset, 0, config.train)
        self.notebook = Notebook(run)
        attempts = Attempts(config, run, self.notebook, cluster, View(cluster, "label"), lab.ears, lambda: 0.0)
        self.fresh = first(Terms(config.launch, config.placement), 1000.0)
        self.jobs = Jobs(config, self.training, run, self.notebook, cluster, attempts, lab.ears, prices or {}, me)

    def submit(self) -> str:
        self.jobs.begin()
        self.jobs.submit()
        assert self.notebook.memory.job is not None
        return self.notebook.memory.job.name


def only(lab: Lab) -> dict[str, Any]:
    (job,) = lab.server.store.list("trainjobs")
    return job


def test_a_job_is_followed_with_its_first_attempt(lab: Lab) -> None:
    launcher = Launcher(lab)
    name = launcher.submit()
    job, attempt = launcher.notebook.memory.job, launcher.notebook.memory.attempt
    assert job is not None
    assert attempt is not None
    assert (job.name, job.uid, job.pool, job.nodes) == (name, only(lab)["metadata"]["uid"], "spot", 2)
    assert (attempt.number, attempt.job) == (0, job)
    assert name.endswith("-1")
    assert launcher.notebook.memory == Notebook(lab.run(lab.settings())).memory, "a successor knows the same"


def test_a_job_that_nobody_remembers_is_adopted_as_it_is(lab: Lab) -> None:
    launcher = Launcher(lab)
    launcher.jobs.begin()
    launcher.notebook.note(number=4, standing=replace(launcher.fresh, pool="on-demand", nodes=1))
    launcher.jobs.submit()
    lab.run(lab.settings()).delete(KEY)
    second = Launcher(lab, "another")
    second.jobs.begin()
    memory = second.notebook.memory
    assert memory.job is not None
    assert (memory.job.name, memory.job.pool, memory.job.nodes, memory.number) == (
        only(lab)["metadata"]["name"], "on-demand", 1, 5,
    )  # fmt: skip
    assert second.notebook.standing.pool == "on-demand"
    assert memory.attempt is not None
    assert only(lab)["metadata"]["annotations"][render.LAUNCHER] == "another"


def test_a_launcher_that_was_killed_between_making_a_job_and_noting_it_makes_no_second(lab: Lab) -> None:
    first_one = Launcher(lab)
    first_one.jobs.begin()
    before = first_one.notebook.memory
    first_one.jobs.submit()
    Notebook(lab.run(lab.settings())).note(**vars(before))
    second = Launcher(lab)
    second.jobs.begin()
    assert second.notebook.memory.job is not None
    assert second.notebook.memory.job.uid == only(lab)["metadata"]["uid"]
    assert second.notebook.memory.number == 1


def test_a_job_of_other_settings_or_one_that_is_going_is_left_behind(lab: Lab) -> None:
    name = Launcher(lab).submit()
    lab.server.store.update("trainjobs", name, lambda job: job["metadata"].update(deletionTimestamp="now"))
    going = Launcher(lab)
    going.jobs.begin()
    assert (going.notebook.memory.job, going.notebook.memory.left) == (None, name)

    second = going.submit()
    assert second != name
    other = Launcher(lab, placement={"gpus": 4})
    other.jobs.begin()
    assert (other.notebook.memory.job, other.notebook.memory.left) == (None, second)
    assert lab.server.store.list("trainjobs") == []


@pytest.mark.parametrize(
    "change", [{"annotations": {render.WORKDIR: "s3://other"}}, {"labels": {render.RUN_LABEL: "x"}}]
)
def test_a_job_of_another_run_is_never_touched(lab: Lab, change: dict[str, Any]) -> None:
    name = Launcher(lab).submit()
    kind, values = next(iter(change.items()))
    lab.server.store.update("trainjobs", name, lambda job: job["metadata"][kind].update(values))
    lab.run(lab.settings()).delete(KEY)
    with pytest.raises(ConfigError, match=name):
        Launcher(lab).jobs.begin()
    assert only(lab)["metadata"]["name"] == name


def test_a_withdrawn_job_is_waited_for_until_its_jobset_is_gone(lab: Lab) -> None:
    launcher = Launcher(lab)
    name = launcher.submit()
    lab.server.store.create("jobsets", {"metadata": {"name": name}})
    launcher.jobs.withdraw("fallback")
    assert (launcher.notebook.memory.job, launcher.notebook.memory.left) == (None, name)
    assert not launcher.jobs.has_left()
    assert launcher.notebook.memory.left == name
    lab.server.store.delete("jobsets", name)
    assert launcher.jobs.has_left()
    assert launcher.notebook.memory.left is None
    launcher.jobs.submit()
    assert only(lab)["metadata"]["name"] == name.removesuffix("-1") + "-2", "no name is used twice"


def test_the_newest_launcher_counts_even_if_the_news_is_older(lab: Lab) -> None:
    old = Launcher(lab, "old")
    old.submit()
    seen = only(lab)
    new = Launcher(lab, "new")
    new.jobs.begin()
    job = new.notebook.memory.job
    assert job is not None
    new.jobs.check_launcher(job, seen)
    with pytest.raises(DarkroomError, match="new"):
        old.jobs.check_launcher(job, only(lab))


def test_a_price_that_is_set_goes_before_the_list_even_if_it_is_nothing(lab: Lab) -> None:
    assert Launcher(lab, launch={"usd_per_hour": 0.0}, prices={"spot": 3.0}).jobs.price("spot") == 0.0
    listed = Launcher(lab, launch={"usd_per_hour": None}, prices={"spot": 3.0}).jobs
    assert (listed.price("spot"), listed.price("on-demand")) == (3.0, 0.0)


def test_what_a_launch_that_has_ended_leaves_to_the_next(lab: Lab) -> None:
    config = lab.settings()
    accounting.begin(lab.run(config), "digest")
    notebook = Notebook(lab.run(config))
    standing = replace(Launcher(lab).fresh, began=7.0, crashes=3, preemptions=9)
    for why, kept in (("done", True), ("failed", True), ("budget", False), ("deadline", False)):
        notebook.note(standing=standing, ending=Ending(why), finished=False)
        going_on = Launcher(lab)
        going_on.jobs.begin()
        assert (going_on.notebook.memory.ending is not None) == kept
        assert going_on.notebook.standing == standing, "it has not come to its end"

    notebook.note(standing=standing, ending=None, finished=True, attempts=5, judged=2)
    anew = Launcher(lab)
    anew.jobs.begin()
    assert anew.notebook.standing == replace(anew.fresh, began=7.0, since=anew.notebook.standing.since)
    assert (anew.notebook.memory.attempts, anew.notebook.memory.judged, anew.notebook.memory.finished) == (0, 0, False)


@pytest.mark.parametrize(
    ("conditions", "complete", "failed"),
    [
        ([], False, None),
        ([("Complete", "True", "AllJobsCompleted")], True, None),
        ([("Complete", "False", ""), ("Failed", "False", "")], False, None),
        ([("Suspended", "True", ""), ("Failed", "True", "ReachedMaxRestarts")], False, False),
        ([("Failed", "True", "FailJobSetFailurePolicyAction")], False, True),
    ],
)
def test_a_job_is_over_by_a_condition_that_holds(
    conditions: list[tuple[str, str, str]], complete: bool, failed: bool | None
) -> None:
    names = ("type", "status", "reason")
    job = {"status": {"conditions": [{**dict(zip(names, one, strict=True)), "message": "m"} for one in conditions]}}
    why = why_failed(job)
    assert is_complete(job) is complete
    assert (why[1] if why is not None else None) is failed
