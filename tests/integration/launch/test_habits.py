"""What real controllers do, and what once ended, stalled or misbooked a run because of it."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from kubernetes import client

from components.accounting.ledger import by_attempt, read_ledger
from components.errors import ConfigError, Preempted
from pipeline.launch import render
from pipeline.launch.api import ApiUnreachable
from pipeline.launch.pods import read_time
from tests.cluster import kueue
from tests.cluster.harness import STEPS, Harness, assert_books_are_right
from tests.cluster.operators import GangScript

pytestmark = pytest.mark.slow


def test_times_in_whole_seconds_do_not_make_a_training_that_ended_well_look_idle(harness: Harness) -> None:
    harness.as_on_a_cluster(speed=50)
    config = harness.settings()
    with harness.operators(config, GangScript(exit_codes=(75,)), GangScript(exit_codes=(75,))):
        assert harness.launch(config)["attempts"] == 3
    assert_books_are_right(harness, config)
    for lines in by_attempt(read_ledger(harness.run(config))).values():
        seconds = {line.state: line.seconds for line in lines}
        ran = sum(seconds.values()) - seconds["pending"] - seconds["pulling"] - seconds["loading"]
        assert seconds["useful"] == pytest.approx(ran, abs=1.0), "all was saved, so all of it was useful"
        assert seconds["useful"] > seconds["idle"]


@pytest.mark.parametrize("queue", ["gpus", None])
@pytest.mark.parametrize("speed", [None, 50])
@pytest.mark.parametrize("restarts_api", [False, True])
def test_whatever_habits_a_cluster_has_it_is_one_job_and_books_that_add_up(
    harness: Harness, queue: str | None, speed: float | None, restarts_api: bool
) -> None:
    if speed is not None:
        harness.as_on_a_cluster(speed)
    config = harness.settings(placement={"queue": queue}, launch={"restarts": {"max_crashes": 1}})
    lost = GangScript(exit_codes=(137, 1), node_lost=True)
    scripts = [GangScript(exit_codes=(75,)), lost, GangScript(exit_codes=(1,))]

    def restart() -> None:
        harness.server.stop()
        harness.server.start()

    with harness.operators(config, *scripts) as operators:
        if restarts_api:
            operators.on("ended", threading.Thread(target=restart).start)
        assert harness.launch(config) == {"step": STEPS, "attempts": 4, "stopped": None}
    assert harness.exit_codes(config) == [75, 137, 1, 0]
    assert (len(operators.jobs), operators.max_running) == (1, 1)
    assert not harness.remaining_objects
    assert_books_are_right(harness, config)
    (job,) = operators.jobs
    (*_, end) = harness.events(config, "attempt-ended")
    ledger = read_ledger(harness.run(config))
    whole = end["time"] - read_time(job["metadata"]["creationTimestamp"])
    assert sum(line.seconds for line in ledger) == pytest.approx(whole, abs=0.1), "every second is in one state"


def test_a_job_that_is_admitted_and_never_starts_is_counted_and_ends_with_the_clusters_reason(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(kueue.FIELDS["trainer"], "numProcPerNode")  # as if Kueue did not know this field
    config = harness.settings(launch={"unstarted_minutes": 0.2 / 60, "restarts": {"max_crashes": 1}})
    with harness.operators(config) as operators:
        message = r"quota, but no pods .*unstarted_minutes.*AdmissionFailed: .*field is immutable"
        with pytest.raises(ConfigError, match=message):
            harness.launch(config)
    assert len(operators.jobs) == 2, "one more is tried, and counts as a crash"
    assert [event["reason"] for event in harness.progress.all("job-deleted")] == ["never-started", "failed"]
    assert all("field is immutable" in event["warnings"] for event in harness.progress.all("job-not-started"))
    assert not harness.remaining_objects
    assert sum(line.usd for line in read_ledger(harness.run(config))) == 0


def test_a_job_that_waits_for_quota_is_waited_for(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    config = harness.settings(launch={"unstarted_minutes": 0.1 / 60})
    has_quota = threading.Event()
    admit = kueue.Kueue.may_start
    monkeypatch.setattr(kueue.Kueue, "may_start", lambda played, name: has_quota.is_set() and admit(played, name))
    threading.Timer(0.5, has_quota.set).start()
    with harness.operators(config) as operators:
        assert harness.launch(config) == {"step": STEPS, "attempts": 1, "stopped": None}
    assert len(operators.jobs) == 1


def test_an_api_that_has_just_come_back_denies_everything_for_a_moment(harness: Harness) -> None:
    config = harness.settings()
    harness.server.cold_answers = 6
    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:

        def restart() -> None:
            harness.server.stop()
            harness.server.start()
            (gang,) = operators.gangs
            gang.finish(STEPS)

        operators.on("holding", threading.Thread(target=restart).start)
        assert harness.launch(config) == {"step": STEPS, "attempts": 1, "stopped": None}
    assert_books_are_right(harness, config)


def test_a_denial_that_lasts_is_an_outage_like_any_other(harness: Harness) -> None:
    config = harness.settings()
    harness.server.cold_answers = 10**9

    def restart() -> None:
        harness.server.stop()
        harness.server.start()

    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:
        operators.on("holding", threading.Thread(target=restart).start)
        with pytest.raises(ApiUnreachable, match=r"403 Forbidden.*launch\.api_away_minutes"):
            harness.launch(config, patience=0.3)
    assert len(harness.server.store.list("trainjobs")) == 1, "the training goes on"


def test_a_launcher_that_is_terminated_closes_the_books_within_its_own_grace(harness: Harness) -> None:
    config = harness.settings(launch={"stop_seconds": 0.3})
    with harness.operators(config, GangScript(steps=9, exit_codes=None, save_ticks=250)) as operators:
        operators.on("holding", lambda: os.kill(os.getpid(), signal.SIGTERM))
        began = time.monotonic()
        with pytest.raises(Preempted, match=r"2 of its pods still save"):
            harness.launch(config)
        assert time.monotonic() - began < 5
        assert {line.attempt for line in read_ledger(harness.run(config))} == {0}
        assert harness.progress.all("books-closed-early") == [{"event": "books-closed-early", "running": 2}]
        assert harness.launch(config) == {"step": STEPS, "attempts": 2, "stopped": None}
        assert operators.max_running == 1, "the next training waits until this one has saved"
    assert_books_are_right(harness, config)


@pytest.fixture
def hook() -> ModuleType:
    """The chart's hook that ends trainings before a release goes."""
    file = Path(__file__).parents[3] / "charts/darkroom/files/end_trainings.py"
    spec = importlib.util.spec_from_file_location("end_trainings", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uninstall(harness: Harness, hook: ModuleType, seconds: float) -> None:
    harness.server.store.create("rolebindings", {"metadata": {"name": "launcher"}})
    api = client.ApiClient(client.Configuration(host=harness.server.url))
    trainings = hook.Trainings(client, "lab", "darkroom-train", lambda pause: time.sleep(pause / 50), api)
    trainings.end("launcher", seconds)


def test_an_uninstall_lets_the_launcher_save_and_close_the_books(harness: Harness, hook: ModuleType) -> None:
    assert hook.WITHDRAWN == render.WITHDRAWN
    config = harness.settings()
    with harness.operators(config, GangScript(steps=9, exit_codes=None)) as operators:
        thread = threading.Thread(target=uninstall, args=(harness, hook, 600.0))
        operators.on("holding", thread.start)
        with pytest.raises(Preempted):
            harness.launch(config)
        thread.join()
    assert harness.exit_codes(config) == [75]
    assert not harness.remaining_objects
    assert harness.server.store.list("rolebindings") == [], "a step that is started again may submit nothing"
    assert_books_are_right(harness, config)


def test_an_uninstall_ends_what_no_launcher_ends_and_nothing_of_others(harness: Harness, hook: ModuleType) -> None:
    def job(name: str, runtime: str, **status: object) -> None:
        spec = {"runtimeRef": {"name": runtime}}
        harness.server.store.create("trainjobs", {"metadata": {"name": name}, "spec": spec, "status": status})

    job("ours", "darkroom-train")
    job("over", "darkroom-train", conditions=[{"type": "Complete", "status": "True"}])
    job("theirs", "another")
    uninstall(harness, hook, seconds=3.0)
    assert sorted(harness.remaining_objects) == ["over", "theirs"]
