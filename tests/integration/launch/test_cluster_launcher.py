"""The launcher on a cluster: a real client against a played API server and played operators; see `tests/cluster`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from components.accounting.ledger import by_state, read_ledger, spent
from components.errors import ConfigError, DarkroomError, DataError, Preempted
from pipeline.launch import render
from pipeline.launch.api import ApiUnreachable
from pipeline.launch.pods import read_time
from tests.cluster.api_server import Refusal
from tests.cluster.harness import STEPS, Harness, assert_books_are_right
from tests.cluster.operators import GangScript, Operators, PlayedGang

pytestmark = pytest.mark.slow


def test_from_the_first_node_to_the_last_step(harness: Harness) -> None:
    config = harness.settings()
    with harness.operators(config) as operators:
        assert harness.launch(config) == {"step": STEPS, "attempts": 1, "stopped": None}
        assert harness.launch(config) == {"step": STEPS, "attempts": 0, "stopped": None}, "it is trained already"
    (job,) = operators.jobs
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert not harness.remaining_objects
    assert harness.progress.all("training")
    assert harness.progress.all("step")[-1]["step"] == STEPS
    assert_books_are_right(harness, config)
    states = {state: total.seconds for state, total in by_state(read_ledger(harness.run(config))).items()}
    assert states["useful"] > 0
    assert states["pending"] > 0
    assert states["pulling"] > 0
    created_at = read_time(job["metadata"]["creationTimestamp"])
    (end,) = harness.events(config, "attempt-ended")
    assert sum(states.values()) == pytest.approx(end["time"] - created_at, abs=0.1)
    (start,) = harness.events(config, "attempt-started")
    assert start == {**start, "nodes": 2, "pool": "spot", "ranks": 2}


def test_three_preemptions_cost_no_crash_and_no_second_job(harness: Harness) -> None:
    config = harness.settings(launch={"restarts": {"max_crashes": 0}})
    preempted, node_lost = GangScript(exit_codes=(75,)), GangScript(exit_codes=(137, 1), node_lost=True)
    with harness.operators(config, preempted, preempted, node_lost) as operators:
        assert harness.launch(config) == {"step": STEPS, "attempts": 4, "stopped": None}
    assert harness.exit_codes(config) == [75, 75, 137, 0]
    assert len(operators.jobs) == 1
    assert operators.max_running == 1
    assert [event["steps_lost"] for event in harness.events(config, "attempt-ended")] == [0, 0, 0, 0]
    assert_books_are_right(harness, config)


def test_on_demand_nodes_are_requested_if_no_spot_nodes_come(harness: Harness) -> None:
    config = harness.settings(launch={"fallback": {"wait_minutes": 0.3 / 60}})
    with harness.operators(config, GangScript(nodes=0)) as operators:
        assert harness.launch(config)["step"] == STEPS
    pools = [job["metadata"]["annotations"][render.POOL] for job in operators.jobs]
    assert pools == ["spot", "on-demand"]
    assert harness.progress.all("job-deleted")[0]["reason"] == "fallback"
    ledger = read_ledger(harness.run(config))
    assert {line.pool for line in ledger if line.attempt == 0 and line.seconds} == {"spot"}
    assert [line.usd_per_hour for line in ledger if line.state == "pending"] == [0.0, 0.0]
    assert_books_are_right(harness, config)


def test_fewer_nodes_train_if_no_more_come(harness: Harness) -> None:
    config = harness.settings(placement={"nodes": 4, "min_nodes": 2}, launch={"shrink_wait_minutes": 0.2 / 60})
    with harness.operators(config, GangScript(nodes=3)) as operators:
        assert harness.launch(config)["step"] == STEPS
    assert [job["spec"]["trainer"]["numNodes"] for job in operators.jobs] == [4, 3]
    assert operators.max_running == 1


def test_at_the_budget_it_saves_and_is_evaluated_as_it_is(harness: Harness) -> None:
    # One $ per second and node: apart from what saving costs, the budget is enough for half a second.
    config = harness.settings(launch={"usd_per_hour": 3600.0, "budget_usd": 31.0}, placement={"grace_seconds": 15})
    with harness.operators(config, GangScript(steps=7, exit_codes=None)) as operators:
        assert harness.launch(config) == {"step": 7, "attempts": 1, "stopped": "budget"}
        assert harness.exit_codes(config) == [75]
        assert spent(read_ledger(harness.run(config))) < 31
        assert not harness.remaining_objects
        assert harness.launch(config) == {"step": 7, "attempts": 0, "stopped": "budget"}
        assert len(operators.jobs) == 1, "nothing is started without money"
        richer = harness.settings(launch={"budget_usd": 60.0}, placement={"grace_seconds": 15})
        assert harness.launch(richer) == {"step": STEPS, "attempts": 1, "stopped": None}


def test_a_run_that_is_terminated_saves_and_leaves_nothing_behind(harness: Harness) -> None:
    config = harness.settings()
    with harness.operators(config, GangScript(steps=9, exit_codes=None)) as operators:
        operators.on("holding", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            harness.launch(config)
        assert not harness.remaining_objects
        assert harness.exit_codes(config) == [75]
        assert harness.launch(config) == {"step": STEPS, "attempts": 2, "stopped": None}
    assert_books_are_right(harness, config)


@pytest.mark.parametrize(("code", "error"), [(78, ConfigError), (65, DataError)])
def test_what_the_trainer_rejects_is_not_tried_again(harness: Harness, code: int, error: type[DarkroomError]) -> None:
    config = harness.settings()
    script = GangScript(exit_codes=(code, 75), log_tail='{"event": "loading"}\nrank 0: shard 7 is missing\n')
    with harness.operators(config, script) as operators, pytest.raises(error) as raised:
        harness.launch(config)
    assert str(raised.value) == "shard 7 is missing", "the log without events"
    assert len(operators.jobs) == operators.gangs_created == 1
    assert not harness.remaining_objects


def test_too_many_crashes_end_it_with_the_last_lines_of_the_log(harness: Harness) -> None:
    config = harness.settings(launch={"restarts": {"max_crashes": 1}})
    scripts = [GangScript(exit_codes=(1,)), GangScript(exit_codes=(9,), log_tail="the disk is full")]
    with harness.operators(config, *scripts) as operators:
        with pytest.raises(DarkroomError, match=r"exit code 9 .* 0 preemptions .* 2 crashes.*\nthe disk is full"):
            harness.launch(config)
        assert operators.gangs_created == 2
        assert not harness.remaining_objects


def test_a_log_that_kubernetes_does_not_report_is_read_from_the_pod(harness: Harness) -> None:
    config = harness.settings(launch={"restarts": {"max_crashes": 0}})

    def write_logs() -> None:
        pods = [pod["metadata"]["name"] for pod in harness.server.store.list("pods")]
        harness.server.logs = {pod: f"the disk of {pod} is full" for pod in pods}

    with harness.operators(config, GangScript(exit_codes=(9,))) as operators:
        operators.on("running", write_logs)
        with pytest.raises(DarkroomError, match=r"\nthe disk of \S+-node-0-0-00001 is full"):
            harness.launch(config)


def test_a_jobset_that_gives_up_before_the_settings_do_is_submitted_again(harness: Harness) -> None:
    config = harness.settings(launch={"restarts": {"max_crashes": 2}})
    with harness.operators(config, GangScript(exit_codes=(1,)), GangScript(exit_codes=(1,))) as operators:
        operators.max_restarts = 0
        assert harness.launch(config)["attempts"] == 3
    assert len(operators.jobs) == 3
    assert operators.max_running == 1


def test_restarts_without_a_newer_checkpoint_come_to_an_end(harness: Harness) -> None:
    config = harness.settings(launch={"restarts": {"max_without_progress": 2}})
    scripts = [GangScript(steps=3, exit_codes=(75,), saves=False)] * 5
    message = r"75.*\b3.*max_without_progress is 2"
    with harness.operators(config, *scripts) as operators, pytest.raises(DarkroomError, match=message):
        harness.launch(config)
    assert operators.gangs_created in (3, 4), "the fourth may have begun"


def test_a_container_that_cannot_start_ends_it_with_the_reason(harness: Harness) -> None:
    config = harness.settings(launch={"stuck_minutes": 0.2 / 60})
    # A kubelet alternates between the two, and never stays with one for long.
    script = GangScript(waiting_reasons=("ErrImagePull", "ImagePullBackOff"))
    with harness.operators(config, script), pytest.raises(ConfigError, match=r"(ErrImagePull|ImagePullBackOff): no"):
        harness.launch(config)
    assert not harness.remaining_objects


def test_a_job_that_somebody_deletes_is_submitted_again(harness: Harness) -> None:
    config = harness.settings()
    with harness.operators(config, GangScript(steps=6, exit_codes=None)) as operators:
        operators.on("holding", lambda: delete_all(harness))
        assert harness.launch(config) == {"step": STEPS, "attempts": 2, "stopped": None}
    assert len(operators.jobs) == 2
    assert operators.max_running == 1
    assert harness.progress.all("job-lost")


def delete_all(harness: Harness) -> None:
    for job in harness.server.store.list("trainjobs"):
        harness.server.store.delete("trainjobs", job["metadata"]["name"])


def test_a_job_of_another_run_with_the_same_name_is_not_touched(harness: Harness) -> None:
    config = harness.settings()
    name = f"{render.job_label(config.run, harness.workdir.url)}-1"
    harness.server.store.create("trainjobs", {"metadata": {"name": name}})
    with pytest.raises(ConfigError, match=f"{name} .* lab .*{config.run} "):
        harness.launch(config)
    assert harness.remaining_objects == [name]


def test_another_dataset_starts_anew_once_the_earlier_training_has_ended(harness: Harness) -> None:
    config = harness.settings()
    with harness.operators(config, GangScript(steps=9, exit_codes=None)) as operators:
        operators.on("holding", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            harness.launch(config)
        harness.launch(config, dataset="another")
        assert json.loads(harness.run(config).read("launch.json"))["state"]["preemptions"] == 0
    assert harness.exit_codes(config) == [0], "the records are those of the new training"
    kept = harness.workdir.child(f"runs/{config.run}.1")
    assert {line.attempt for line in read_ledger(kept)} == {0}, "those of the one before are kept"
    assert operators.max_running == 1


def test_a_rejection_is_reported_with_the_clusters_own_message(harness: Harness) -> None:
    def deny(method: str, _path: str) -> None:
        if method == "POST":
            raise Refusal(400, "Invalid", "admission webhook denied the request: no such trainingRuntime")

    harness.server.before = deny
    with pytest.raises(ConfigError, match=r"denied the request: no such trainingRuntime.*placement"):
        harness.launch(harness.settings())

    def forbid(_method: str, _path: str) -> None:
        raise Refusal(403, "Forbidden", 'pods is forbidden: User "me" cannot list resource "pods"')

    harness.server.before = forbid
    with pytest.raises(ConfigError, match=r"403 .*pods is forbidden.* role"):
        harness.launch(harness.settings())


def test_the_api_may_be_unreachable_and_forget_and_break_off_in_the_middle_of_a_line(harness: Harness) -> None:
    config = harness.settings()
    faults: dict[str, Callable[[], None]] = {
        "pending": lambda: stop_for(harness, 0.5),
        "pulling": lambda: forget(harness, seconds=0),
        "running": lambda: fail_requests(harness, 5),
        "ended": lambda: forget(harness, seconds=0.3),
    }
    scripts = [GangScript(exit_codes=(75,)), GangScript(exit_codes=(1,)), GangScript(exit_codes=(75,))]
    with harness.operators(config, *scripts) as operators:
        for state, fault in faults.items():
            operators.on(state, threading.Thread(target=fault).start)
        assert harness.launch(config)["step"] == STEPS
    assert len(operators.jobs) == 1
    assert operators.max_running == 1
    assert_books_are_right(harness, config)


def stop_for(harness: Harness, seconds: float) -> None:
    with harness.outage:
        harness.server.stop()
        time.sleep(seconds)
        harness.server.start()


def forget(harness: Harness, seconds: float) -> None:
    harness.server.store.forget()
    harness.server.break_streams(torn=True)
    stop_for(harness, seconds)


def fail_requests(harness: Harness, times: int) -> None:
    statuses = iter([(429, 503)[number % 2] for number in range(times)])

    def overloaded(_method: str, _path: str) -> None:
        status = next(statuses, None)
        if status is not None:
            raise Refusal(status, "TooManyRequests", "try again later")

    harness.server.before = overloaded
    harness.server.break_streams()


def lose_the_launcher(harness: Harness, operators: Operators) -> PlayedGang:
    """Start a training whose launcher gives up on the API; returns its gang, which goes on."""
    harness.server.cold_answers = 0  # the next launcher's first request is not among them
    operators.on("holding", threading.Thread(target=harness.server.stop).start)
    with pytest.raises(ApiUnreachable, match=r"0\.005 minutes.*launch\.api_away_minutes"):
        harness.launch(harness.settings(), patience=0.3)
    harness.server.start()
    (gang,) = operators.gangs
    return gang


def test_an_api_that_stays_unreachable_ends_the_launcher_and_not_the_training(harness: Harness) -> None:
    config = harness.settings()
    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:
        gang = lose_the_launcher(harness, operators)
        gang.finish(STEPS)
        assert harness.launch(config) == {"step": STEPS, "attempts": 1, "stopped": None}
    assert len(operators.jobs) == operators.gangs_created == 1
    assert_books_are_right(harness, config)


def test_the_newest_launcher_is_in_charge(harness: Harness) -> None:
    config = harness.settings()

    def take_over() -> None:
        (job,) = harness.server.store.list("trainjobs")
        change = {"metadata": {"annotations": {render.LAUNCHER: "another"}}}
        harness.cluster().patch_job(job["metadata"]["name"], change)

    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:
        operators.on("holding", threading.Thread(target=take_over).start)
        with pytest.raises(DarkroomError, match=rf"another .*{config.run}"):
            harness.launch(config)
    assert len(harness.server.store.list("trainjobs")) == 1, "the job is the other's now"


def test_a_later_workflow_becomes_the_owner_of_the_job(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": f"flow-{name}", "uid": name}
        harness.server.store.create("pods", {"metadata": {"name": name, "ownerReferences": [owner]}})
    config = harness.settings()
    monkeypatch.setenv("KFP_POD_NAME", "first")
    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:
        gang = lose_the_launcher(harness, operators)
        (job,) = harness.server.store.list("trainjobs")
        assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == ["first"]
        monkeypatch.setenv("KFP_POD_NAME", "second")
        owners: list[str] = []

        def note_owners(method: str, path: str) -> None:
            if method == "DELETE":
                (job,) = harness.server.store.list("trainjobs")
                owners.extend(owner["uid"] for owner in job["metadata"]["ownerReferences"])

        harness.server.before = note_owners
        gang.finish(STEPS)
        harness.launch(config)
    assert owners == ["second"]


def test_warnings_of_the_cluster_are_reported_while_nodes_are_waited_for(harness: Harness) -> None:
    config = harness.settings(launch={"fallback": {"wait_minutes": 0.3 / 60}})
    job = f"{render.job_label(config.run, harness.workdir.url)}-1"
    pod = {"kind": "Pod", "name": f"{job}-node-0-0-abcde"}
    warning = {"metadata": {"name": "w"}, "involvedObject": pod, "reason": "FailedScheduling", "count": 3}
    harness.server.store.create("events", {**warning, "type": "Warning", "message": "0/9 nodes are available"})
    with harness.operators(config, GangScript(nodes=0)):
        harness.launch(config)
    assert harness.progress.all("cluster-warning") == [
        {"event": "cluster-warning", "job": job, "warning": "FailedScheduling: 0/9 nodes are available"}
    ]


def test_a_budget_without_a_price_is_rejected_before_anything_is_submitted(harness: Harness) -> None:
    with pytest.raises(ConfigError, match=r"launch\.budget_usd .*5 \$.*on-demand, spot.*launch\.usd_per_hour"):
        harness.launch(harness.settings(launch={"usd_per_hour": None, "budget_usd": 5.0}))
    assert {method for method, _path in harness.server.requests} <= {"GET"}


@pytest.mark.parametrize(("values", "message"), [({"number": 1}, "format 1"), ({"format": 3}, "format 3")])
def test_a_state_file_of_another_format_is_rejected_and_its_job_goes_on(
    harness: Harness, values: dict[str, int], message: str
) -> None:
    config = harness.settings()
    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:
        gang = lose_the_launcher(harness, operators)
        record = harness.run(config).read("launch.json")
        harness.run(config).write_json("launch.json", values)
        with pytest.raises(ConfigError, match=rf"launch\.json .*{message}.* format 2"):
            harness.launch(config)
        assert len(harness.server.store.list("trainjobs")) == 1, "its job goes on"
        harness.run(config).write("launch.json", record)
        gang.finish(STEPS)
        assert harness.launch(config)["attempts"] == 1
    assert len(operators.jobs) == operators.gangs_created == 1


def test_without_its_state_file_the_job_is_found_by_its_labels(harness: Harness) -> None:
    config = harness.settings()
    with harness.operators(config, GangScript(steps=5, exit_codes=None)) as operators:
        gang = lose_the_launcher(harness, operators)
        harness.run(config).delete("launch.json")
        gang.finish(STEPS)
        assert harness.launch(config)["step"] == STEPS
    assert harness.progress.all("job-adopted")
    assert len(operators.jobs) == operators.gangs_created == 1
