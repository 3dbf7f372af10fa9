"""From updates of pods to closed attempts: which pods make one, what it costs, and what the next one starts with."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from components.accounting.ledger import read_ledger, spent
from components.progress import Progress
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.launch.api import Cluster
from pipeline.launch.attempts import AttemptResult, Attempts, RunCost
from pipeline.launch.context import LaunchContext
from pipeline.launch.observer import ClusterObserver
from pipeline.launch.policy import GangExit
from pipeline.launch.state import StateFile, TrainJobRecord
from pipeline.launch.watch import WatchEvent
from tests.cluster.operators import commit_checkpoint
from tests.stores.mortal import Killed

START = 1_800_000_000.0
JOB = TrainJobRecord("job-1", "uid-of-job", "spot", 2, 3600.0)  # a dollar per second and node


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


def terminated(exit_code: int, second: float, message: str = "the disk is full") -> dict[str, Any]:
    return {"exitCode": exit_code, "startedAt": at(10), "finishedAt": at(second), "message": message}


class Harness:
    """A launcher whose first attempt was requested at `START`; the test says which pods the cluster has."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        values = {"name": "x", "ingest": {"source": "x"}, "launch": {"where": "trainjob", "stuck_minutes": 5}}
        data = ("base", "key", "digest", Progress(io.StringIO()))
        context = LaunchContext(RunConfig.parse(values), open_storage(str(folder)), *data, wall_clock=lambda: self.now)
        cluster = Cluster(client.ApiClient(), "lab", patience=60.0)
        self.run = context.run
        self.state_file = StateFile(self.run)
        self.observer = ClusterObserver(cluster, "label")
        self.attempts = Attempts(context, self.state_file, cluster, self.observer)
        if self.state_file.record.attempt is None:
            self.state_file.update(job=JOB, attempt=self.attempts.begin(JOB, START))

    def follow(self, *pods: dict[str, Any], is_job_over: bool = False) -> AttemptResult | None:
        """Follow the attempt once these pods are all that exist."""
        self.observer._queue.put(WatchEvent("listed", "job"))
        self.observer._queue.put(WatchEvent("listed", "pod", pods))
        assert self.observer.wait(10.0)  # until the queue is empty
        result = self.attempts.follow(is_job_over)
        if result is not None:
            self.state_file.update(attempt=result.next_attempt)
        return result

    def seconds(self, attempt: int) -> dict[str, float]:
        lines = [line for line in read_ledger(self.run) if line.attempt == attempt]
        return {line.state: line.seconds for line in lines if line.seconds}


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_an_attempt_is_closed_once_all_of_its_pods_have_ended(harness: Harness) -> None:
    assert harness.follow(pod(0, scheduled=4), pod(1, scheduled=5, running={"startedAt": at(10)})) is None
    first = pod(0, scheduled=4, terminated=terminated(75, 40))
    assert harness.follow(first, pod(1, running={"startedAt": at(12)})) is None
    result = harness.follow(pod(0, terminated=terminated(75, 40)), pod(1, terminated=terminated(75, 44)))
    assert result is not None
    assert result.gang == GangExit(75, False, 0)
    following = result.next_attempt
    assert following is not None
    assert (following.number, following.requested_at, following.gang.pods) == (1, START + 44, {})
    # Pulling lasts until the last container runs, which is at second 10 according to the report of its end.
    assert harness.seconds(0) == {"pending": 4.0, "pulling": 6.0, "loading": 34.0}


def test_a_gang_that_lacks_pods_is_not_closed(harness: Harness) -> None:
    assert harness.follow(pod(0, terminated=terminated(1, 40))) is None
    result = harness.follow(pod(0, terminated=terminated(1, 40)), is_job_over=True)
    assert result is not None
    assert (result.gang.exit_code, result.log_tail, result.next_attempt) == (1, "the disk is full", None)


@pytest.mark.parametrize("code", [0, 75])
def test_an_end_without_an_error_needs_no_log(harness: Harness, code: int) -> None:
    result = harness.follow(pod(0, terminated=terminated(code, 40)), pod(1, terminated=terminated(code, 40)))
    assert result is not None
    assert result.log_tail == ""
    assert (result.next_attempt is None) == (code == 0), "no attempt follows the last step"


def test_events_are_left_out_of_the_log(harness: Harness) -> None:
    log = '{"event": "loading"}\nshard 7 is missing\n{"event": "x"}\nindeed'
    result = harness.follow(pod(0, terminated=terminated(65, 40, log)), pod(1, terminated=terminated(65, 41)))
    assert result is not None
    assert result.log_tail == "shard 7 is missing\nindeed"


@pytest.mark.parametrize(("sign", "paid"), [("none", 10.0), ("event", 47.5), ("metrics", 55.0), ("launcher", 75.0)])
def test_a_pod_that_was_deleted_while_no_launcher_watched_is_paid_for_until_its_last_sign(
    tmp_path: Path, sign: str, paid: float
) -> None:
    running = {"startedAt": at(10)}
    pods = [pod(0, scheduled=4, running=running), pod(1, scheduled=4, running=running)]
    first = Harness(tmp_path)
    first.follow(*pods)
    if sign == "event":
        events = [{"time": START - 5, "event": "loading"}, {"time": START + 47.5, "event": "checkpoint", "step": 1}]
        first.run.write_lines("events.jsonl", [*events, {"time": START + 1e6, "event": "loading"}])
    elif sign == "metrics":
        first.run.write_lines("metrics.jsonl", [{"step": 1}])
        metrics = first.run.local_path("metrics.jsonl")
        assert metrics is not None
        os.utime(metrics, (START + 55, START + 55))
    elif sign == "launcher":
        first.now = START + 75
        first.follow(*pods)
        first.now = START + 80  # less than a minute later nothing is written
        first.follow(*pods)
    later = Harness(tmp_path)  # its state file has pods that its observer does not have
    later.now = START + 5000
    result = later.follow(is_job_over=True)
    assert result is not None
    assert result.gang.exit_code == 137
    assert sum(later.seconds(0).values()) == paid


def test_a_gang_that_is_replaced_ended_before_the_next_one_was_created(harness: Harness) -> None:
    running = {"startedAt": at(10)}
    harness.follow(pod(0, running=running), pod(1, running=running))
    harness.now = START + 500
    result = harness.follow(pod(0, restart=1, created=70), pod(1, restart=1, created=70))
    assert result is not None
    assert result.next_attempt is not None
    assert sum(harness.seconds(0).values()) == 70.0
    assert result.next_attempt.requested_at == START + 70


def test_pods_of_earlier_attempts_are_not_counted_again(harness: Harness) -> None:
    first = [pod(0, terminated=terminated(75, 40)), pod(1, terminated=terminated(75, 41))]
    assert harness.follow(*first) is not None
    assert harness.follow(*first) is None
    second = [
        pod(0, 1, created=50, terminated=terminated(75, 60)),
        pod(1, 1, created=50, terminated=terminated(75, 61)),
    ]
    assert harness.follow(*first, *second) is not None
    assert harness.follow(*first, *second) is None
    attempt = harness.state_file.record.attempt
    assert attempt is not None
    assert (attempt.number, attempt.gang.pods, set(attempt.earlier_pods)) == (
        2, {}, {"job-1-0-0", "job-1-0-1", "job-1-1-0", "job-1-1-1"},
    )  # fmt: skip
    assert harness.follow(*second) is None, "nor are those that are deleted"


def test_pods_of_another_job_do_not_belong_to_an_attempt(harness: Harness) -> None:
    other = pod(0)
    other["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"] = "job-0"
    harness.follow(other)
    assert harness.attempts.gang.pods == {}


def test_nodes_are_paid_for_from_the_first_one_to_the_last_end(harness: Harness) -> None:
    assert harness.attempts.cost() == RunCost(0.0, 0.0)
    harness.follow(pod(0, scheduled=4), pod(1))
    harness.now = START + 10
    assert harness.attempts.cost() == RunCost(12.0, 2.0), "both nodes are paid for, for 6 s at a dollar per second"
    harness.follow(pod(0, terminated=terminated(75, 40)), pod(1, scheduled=5, running={"startedAt": at(10)}))
    harness.now = START + 60
    assert harness.attempts.cost() == RunCost(112.0, 2.0)
    harness.follow(pod(0, terminated=terminated(75, 40)), pod(1, terminated=terminated(75, 44)))
    usd = spent(read_ledger(harness.run))
    assert usd == pytest.approx(80.0)
    assert harness.attempts.cost() == RunCost(usd, 0.0)


def test_a_gang_that_is_over_but_lacks_pods_costs_nothing_more(harness: Harness) -> None:
    assert harness.follow(pod(0, scheduled=4, terminated=terminated(1, 40))) is None
    harness.now = START + 60
    assert harness.attempts.cost().usd_per_second == 0.0


def test_a_container_is_stuck_once_it_has_been_without_a_break_for_so_long(harness: Harness) -> None:
    stuck = pod(0, waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    harness.follow(stuck)
    assert harness.attempts.stuck_reason() is None
    harness.now += 299
    assert harness.attempts.stuck_reason() is None
    harness.follow(pod(0, waiting={"reason": "ContainerCreating"}))
    assert harness.attempts.stuck_reason() is None
    harness.now += 2
    harness.follow(stuck)
    assert harness.attempts.stuck_reason() is None, "it was not, a moment ago"
    harness.now += 300
    assert harness.attempts.stuck_reason() == "job-1-0-0: ImagePullBackOff: no such image"


def test_an_attempt_that_never_ran_is_in_the_ledger_once_as_waiting(harness: Harness) -> None:
    harness.now = START + 33
    attempt = harness.state_file.record.attempt
    harness.attempts.abandon()
    assert harness.seconds(0) == {"pending": 33.0}
    assert harness.state_file.record.attempt is None
    harness.now = START + 99
    harness.state_file.update(attempt=attempt)  # the launcher was killed before it wrote its state file
    harness.attempts.abandon()
    assert harness.seconds(0) == {"pending": 33.0}
    assert spent(read_ledger(harness.run)) == 0.0


def test_an_attempt_that_never_ran_is_in_the_ledger_before_it_is_forgotten(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_key: str, _data: bytes) -> None:
        raise Killed

    monkeypatch.setattr(harness.run, "append", killed)
    with pytest.raises(Killed):
        harness.attempts.abandon()
    assert StateFile(harness.run).record.attempt is not None


def test_a_training_that_does_not_go_on_is_closed_with_what_is_known_of_its_pods(harness: Harness) -> None:
    harness.now = START + 20
    harness.follow(pod(0, scheduled=4), pod(1, scheduled=5, running={"startedAt": at(10)}))
    harness.now = START + 50
    harness.attempts.close_for_good()
    assert harness.state_file.record.attempt is None
    paid = {state: seconds for state, seconds in harness.seconds(0).items() if state != "pending"}
    assert sum(paid.values()) == 16.0, "from the first node to the last sign of them"
    assert harness.follow(pod(0, scheduled=4), pod(1, scheduled=5, running={"startedAt": at(10)})) is None
    harness.attempts.close_for_good()
    assert len({line.attempt for line in read_ledger(harness.run)}) == 1


def test_a_training_that_does_not_go_on_and_never_ran_has_only_waited(harness: Harness) -> None:
    harness.now = START + 50
    harness.attempts.close_for_good()
    assert harness.seconds(0) == {"pending": 50.0}


def test_pods_that_are_gone_need_not_be_remembered(harness: Harness) -> None:
    harness.follow(pod(0, scheduled=4, running={"startedAt": at(10)}), pod(1, running={"startedAt": at(10)}))
    harness.now = START + 60
    ended = pod(1, terminated=terminated(75, 44))
    assert harness.follow(ended, pod(0, 1, created=50), pod(1, 1, created=50)) is not None
    following = harness.state_file.record.attempt
    assert following is not None
    assert following.earlier_pods == ("job-1-0-1",)


def test_an_attempt_that_is_closed_by_two_launchers_is_in_the_ledger_once(harness: Harness) -> None:
    pods = [pod(0, scheduled=4, terminated=terminated(75, 40)), pod(1, scheduled=4, terminated=terminated(75, 44))]
    attempt = harness.state_file.record.attempt
    first = harness.follow(*pods)
    before = read_ledger(harness.run)
    harness.state_file.update(attempt=attempt)  # the first launcher was killed before it wrote its state file
    second = harness.follow(*pods)
    assert first is not None
    assert second is not None
    assert second.gang == first.gang
    assert read_ledger(harness.run) == before


@pytest.mark.parametrize("late", [0.0, 0.4, 0.999])
def test_what_was_saved_in_the_last_second_was_useful(harness: Harness, late: float) -> None:
    """Kubernetes writes the end of a pod in whole seconds, so what it did last is later than that."""
    harness.run.append_lines(
        "events.jsonl",
        [
            {"time": START + 20, "event": "training", "step": 0, "ranks": 2},
            {"time": START + 44 + late, "event": "checkpoint", "step": 109, "trained_seconds": 23.0 + late},
        ],
    )
    commit_checkpoint(harness.run, 109)
    pods = [pod(index, scheduled=4, terminated=terminated(75, 44)) for index in (0, 1)]
    result = harness.follow(*pods)
    assert result is not None
    expected = {"pending": 4.0, "pulling": 6.0, "loading": 10.0, "useful": 23.0 + late, "idle": 1.0}
    assert harness.seconds(0) == pytest.approx(expected)
    assert result.next_attempt is not None
    assert result.next_attempt.requested_at == START + 44 + late, "every second is in one attempt"


def test_what_is_written_a_whole_second_later_is_of_something_else(harness: Harness) -> None:
    harness.run.append_lines("events.jsonl", [{"time": START + 45, "event": "loading", "ranks": 2}])
    harness.follow(*[pod(index, scheduled=4, terminated=terminated(75, 44)) for index in (0, 1)])
    assert sum(harness.seconds(0).values()) == 44


def test_a_launcher_that_must_end_closes_an_attempt_that_goes_on(harness: Harness) -> None:
    running = pod(0, scheduled=4, running={"startedAt": at(10)})
    harness.follow(running, pod(1, scheduled=4, terminated=terminated(75, 25)))
    harness.now = START + 30
    assert harness.attempts.close_early() == 1, "one pod still runs"
    assert sum(harness.seconds(0).values()) == 30
    assert harness.state_file.record.attempt is None
    assert harness.attempts.close_early() == 0
