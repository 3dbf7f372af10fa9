"""From news of pods to closed attempts: which pods make one, what it costs by now, and what the next begins with."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from pipeline.launch.view import View

from components.accounting.ledger import read_ledger, spent
from components.progress import Progress
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.launch.api import Cluster
from pipeline.launch.attempts import Attempts, Bill, Closed
from pipeline.launch.policy import End
from pipeline.launch.state import Job, Notebook
from pipeline.launch.watch import News

START = 1_800_000_000.0
JOB = Job("job-1", "uid-of-job", "spot", 2, 3600.0)  # a dollar per second and node


def at(second: float) -> str:
    return datetime.fromtimestamp(START + second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(
    index: int, restart: int = 0, created: float = 0, scheduled: float | None = None, **state: dict[str, Any]
) -> dict[str, Any]:
    """Return a pod of `JOB` as the API gives it, with the state of its container."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": JOB.name,
        "jobset.sigs.k8s.io/restart-attempt": str(restart),
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    name = f"{JOB.name}-{restart}-{index}"
    status: dict[str, Any] = {"phase": "Pending", "containerStatuses": [{"name": "node", "state": state}]}
    if scheduled is not None:
        status["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at(scheduled)}]
    if "terminated" in state:
        status["phase"] = "Failed" if state["terminated"]["exitCode"] else "Succeeded"
    meta = {"name": name, "uid": name, "labels": labels, "creationTimestamp": at(created)}
    return {"metadata": meta, "status": status}


def done(code: int, second: float, message: str = "its last words") -> dict[str, Any]:
    return {"exitCode": code, "startedAt": at(10), "finishedAt": at(second), "message": message}


class Stage:
    """A launcher of a run whose first attempt was asked for at `START`; the test brings the news of the cluster."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        values = {"name": "x", "ingest": {"source": "x"}, "launch": {"where": "trainjob", "stuck_minutes": 5}}
        self.run = open_storage(str(folder))
        self.notebook = Notebook(self.run)
        cluster = Cluster(client.ApiClient(), "lab", patience=60.0)
        self.view = View(cluster, "label")
        where = (RunConfig.parse(values), self.run, self.notebook, cluster, self.view)
        self.attempts = Attempts(*where, Progress(io.StringIO()), lambda: self.now)
        if self.notebook.memory.attempt is None:
            self.notebook.note(job=JOB, attempt=self.attempts.begin(JOB, START))

    def see(self, *pods: dict[str, Any], is_over: bool = False) -> Closed | None:
        """Follow the attempt once these pods are all that exist."""
        self.view._inbox.put(News("listed", "job"))
        self.view._inbox.put(News("listed", "pod", pods))
        assert self.view.wait(0.001)
        closed = self.attempts.follow(is_over)
        if closed is not None:
            self.notebook.note(attempt=closed.then)
        return closed

    def seconds(self, attempt: int) -> dict[str, float]:
        lines = [line for line in read_ledger(self.run) if line.attempt == attempt]
        return {line.state: line.seconds for line in lines if line.seconds}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_an_attempt_is_closed_once_all_of_its_pods_have_ended(stage: Stage) -> None:
    assert stage.see(pod(0, scheduled=4), pod(1, scheduled=5, running={"startedAt": at(10)})) is None
    assert stage.see(pod(0, scheduled=4, terminated=done(75, 40)), pod(1, running={"startedAt": at(12)})) is None
    closed = stage.see(pod(0, terminated=done(75, 40)), pod(1, terminated=done(75, 44)))
    assert closed is not None
    assert closed.end == End(75, False, 0)
    assert closed.then is not None
    assert (closed.then.number, closed.then.asked, closed.then.gang.pods) == (1, START + 44, {})
    # Pods are pulled for until the last container runs, at second 10 by what the API tells of its end.
    assert stage.seconds(0) == {"pending": 4.0, "pulling": 6.0, "loading": 34.0}


def test_a_gang_of_which_pods_are_still_to_come_is_not_closed(stage: Stage) -> None:
    assert stage.see(pod(0, terminated=done(1, 40))) is None
    closed = stage.see(pod(0, terminated=done(1, 40)), is_over=True)
    assert closed is not None
    assert (closed.end.code, closed.said, closed.then) == (1, "its last words", None)


@pytest.mark.parametrize("code", [0, 75])
def test_who_ends_as_it_should_has_no_last_words(stage: Stage, code: int) -> None:
    closed = stage.see(pod(0, terminated=done(code, 40)), pod(1, terminated=done(code, 40)))
    assert closed is not None
    assert closed.said == ""
    assert (closed.then is None) == (code == 0), "nothing comes after the end"


def test_events_are_no_last_words(stage: Stage) -> None:
    said = '{"event": "loading"}\nshard 7 is missing\n{"event": "x"}\nindeed'
    closed = stage.see(pod(0, terminated=done(65, 40, said)), pod(1, terminated=done(65, 41)))
    assert closed is not None
    assert closed.said == "shard 7 is missing\nindeed"


def test_a_pod_that_went_while_nobody_looked_has_ended(tmp_path: Path) -> None:
    running = {"startedAt": at(10)}
    Stage(tmp_path).see(pod(0, scheduled=4, running=running), pod(1, scheduled=4, running=running))
    later = Stage(tmp_path)  # it remembers pods that its view has never seen
    later.now = START + 90
    closed = later.see(is_over=True)
    assert closed is not None
    assert closed.end.code == 137
    assert sum(later.seconds(0).values()) == 90.0


def test_a_gang_that_is_replaced_ended_before_the_next_was_made(stage: Stage) -> None:
    running = {"startedAt": at(10)}
    stage.see(pod(0, running=running), pod(1, running=running))
    stage.now = START + 500
    closed = stage.see(pod(0, restart=1, created=70), pod(1, restart=1, created=70))
    assert closed is not None
    assert closed.then is not None
    assert sum(stage.seconds(0).values()) == 70.0
    assert closed.then.asked == START + 70


def test_what_is_left_of_attempts_before_is_not_taken_for_one_that_follows(stage: Stage) -> None:
    first = [pod(0, terminated=done(75, 40)), pod(1, terminated=done(75, 41))]
    assert stage.see(*first) is not None
    assert stage.see(*first) is None
    second = [pod(0, 1, created=50, terminated=done(75, 60)), pod(1, 1, created=50, terminated=done(75, 61))]
    assert stage.see(*first, *second) is not None
    assert stage.see(*first, *second) is None
    attempt = stage.notebook.memory.attempt
    assert attempt is not None
    assert (attempt.number, attempt.gang.pods, set(attempt.old)) == (
        2, {}, {"job-1-0-0", "job-1-0-1", "job-1-1-0", "job-1-1-1"},
    )  # fmt: skip
    assert stage.see(*second) is None, "nor are those that go"


def test_pods_of_another_job_are_none_of_an_attempts(stage: Stage) -> None:
    stranger = pod(0)
    stranger["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"] = "job-0"
    stage.see(stranger)
    assert stage.attempts.gang.pods == {}


def test_the_bill_runs_from_the_first_node_to_the_last_end(stage: Stage) -> None:
    assert stage.attempts.bill() == Bill(0.0, 0.0)
    stage.see(pod(0, scheduled=4), pod(1))
    stage.now = START + 10
    assert stage.attempts.bill() == Bill(12.0, 2.0), "both nodes are paid for, for 6 s at a dollar per second"
    stage.see(pod(0, terminated=done(75, 40)), pod(1, scheduled=5, running={"startedAt": at(10)}))
    stage.now = START + 60
    assert stage.attempts.bill() == Bill(112.0, 2.0)
    stage.see(pod(0, terminated=done(75, 40)), pod(1, terminated=done(75, 44)))
    paid = spent(read_ledger(stage.run))
    assert paid == pytest.approx(80.0)
    assert stage.attempts.bill() == Bill(paid, 0.0)


def test_a_gang_that_is_over_but_not_whole_costs_nothing_more(stage: Stage) -> None:
    assert stage.see(pod(0, scheduled=4, terminated=done(1, 40))) is None
    stage.now = START + 60
    assert stage.attempts.bill().rate == 0.0


def test_a_container_is_stuck_once_it_has_been_for_so_long_without_a_break(stage: Stage) -> None:
    stuck = pod(0, waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    stage.see(stuck)
    assert stage.attempts.stuck() is None
    stage.now += 299
    assert stage.attempts.stuck() is None
    stage.see(pod(0, waiting={"reason": "ContainerCreating"}))
    assert stage.attempts.stuck() is None
    stage.now += 2
    stage.see(stuck)
    assert stage.attempts.stuck() is None, "it was not, a moment ago"
    stage.now += 300
    assert stage.attempts.stuck() == "job-1-0-0: ImagePullBackOff: no such image"


def test_an_attempt_that_never_ran_was_waited_for_and_is_written_once(stage: Stage) -> None:
    stage.now = START + 33
    opened = stage.notebook.memory.attempt
    stage.attempts.drop()
    assert stage.seconds(0) == {"pending": 33.0}
    assert stage.notebook.memory.attempt is None
    stage.now = START + 99
    stage.notebook.note(attempt=opened)  # the launcher was killed before it noted that
    stage.attempts.drop()
    assert stage.seconds(0) == {"pending": 33.0}
    assert spent(read_ledger(stage.run)) == 0.0


def test_an_attempt_that_is_closed_by_two_launchers_is_in_the_books_once(stage: Stage) -> None:
    pods = [pod(0, scheduled=4, terminated=done(75, 40)), pod(1, scheduled=4, terminated=done(75, 44))]
    opened = stage.notebook.memory.attempt
    first = stage.see(*pods)
    before = read_ledger(stage.run)
    stage.notebook.note(attempt=opened)  # the first was killed before it noted that it had closed it
    second = stage.see(*pods)
    assert first is not None
    assert second is not None
    assert second.end == first.end
    assert read_ledger(stage.run) == before
