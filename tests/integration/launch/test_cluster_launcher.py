"""The launcher on a cluster: a real client against an API server, and operators that play what a cluster does."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.accounting.ledger import by_state, read_ledger, spent
from components.errors import ConfigError, DarkroomError, DataError, Preempted
from components.storage.open import open_storage
from pipeline.launch import render
from pipeline.launch.pods import read_time
from tests.cluster.api_server import ApiServer, Refusal
from tests.cluster.lab import STEPS, Ears, Lab, assert_books_are_right
from tests.cluster.operators import Life

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    server = ApiServer()
    yield Lab(server, open_storage(str(tmp_path)), Ears())
    server.stop()


def test_from_the_first_machine_to_the_last_step(lab: Lab) -> None:
    config = lab.settings()
    with lab.operators(config) as operators:
        assert lab.launch(config) == {"step": STEPS, "attempts": 1, "stopped": None}
        assert lab.launch(config) == {"step": STEPS, "attempts": 0, "stopped": None}, "it is done already"
    (job,) = operators.jobs
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert not lab.left, "nothing is left behind"
    assert lab.ears.told("training")
    assert lab.ears.told("step")[-1]["step"] == STEPS
    assert_books_are_right(lab, config)
    states = {state: total.seconds for state, total in by_state(read_ledger(lab.run(config))).items()}
    assert states["useful"] > 0
    assert states["pending"] > 0
    assert states["pulling"] > 0
    began = read_time(job["metadata"]["creationTimestamp"])
    (ended,) = lab.events(config, "attempt-ended")
    assert sum(states.values()) == pytest.approx(ended["time"] - began, abs=0.1)
    (started,) = lab.events(config, "attempt-started")
    assert started == {**started, "nodes": 2, "pool": "spot", "ranks": 2}


def test_three_preemptions_cost_no_crash_and_no_second_job(lab: Lab) -> None:
    config = lab.settings(launch={"restarts": {"max_crashes": 0}})
    script = [Life(codes=(75,)), Life(codes=(75,)), Life(codes=(137, 1), taken=True)]
    with lab.operators(config, *script) as operators:
        assert lab.launch(config) == {"step": STEPS, "attempts": 4, "stopped": None}
    assert lab.codes(config) == [75, 75, 137, 0]
    assert len(operators.jobs) == 1
    assert operators.most == 1
    assert [event["steps_lost"] for event in lab.events(config, "attempt-ended")] == [0, 0, 0, 0]
    assert_books_are_right(lab, config)


def test_when_spot_machines_do_not_come_on_demand_ones_are_asked_for(lab: Lab) -> None:
    config = lab.settings(launch={"fallback": {"wait_minutes": 0.3 / 60}})
    with lab.operators(config, Life(scheduled=0)) as operators:
        assert lab.launch(config)["step"] == STEPS
    pools = [job["metadata"]["annotations"][render.POOL] for job in operators.jobs]
    assert pools == ["spot", "on-demand"]
    assert lab.ears.told("job-withdrawn")[0]["why"] == "fallback"
    ledger = read_ledger(lab.run(config))
    assert {line.pool for line in ledger if line.attempt == 0 and line.seconds} == {"spot"}
    assert [line.usd_per_hour for line in ledger if line.state == "pending"] == [0.0, 0.0]
    assert_books_are_right(lab, config)


def test_fewer_machines_train_where_no_more_come(lab: Lab) -> None:
    config = lab.settings(placement={"nodes": 4, "min_nodes": 2}, launch={"shrink_wait_minutes": 0.2 / 60})
    with lab.operators(config, Life(scheduled=3)) as operators:
        assert lab.launch(config)["step"] == STEPS
    assert [job["spec"]["trainer"]["numNodes"] for job in operators.jobs] == [4, 3]
    assert operators.most == 1


def test_at_the_budget_it_saves_and_is_evaluated_as_it_is(lab: Lab) -> None:
    # A dollar per second and machine: with what saving takes put aside, half a second's worth is left.
    config = lab.settings(launch={"usd_per_hour": 3600.0, "budget_usd": 31.0}, placement={"grace_seconds": 15})
    with lab.operators(config, Life(steps=7, codes=None)) as operators:
        assert lab.launch(config) == {"step": 7, "attempts": 1, "stopped": "budget"}
        assert lab.codes(config) == [75]
        assert spent(read_ledger(lab.run(config))) < 31
        assert not lab.left
        assert lab.launch(config) == {"step": 7, "attempts": 0, "stopped": "budget"}, "nothing is started without money"
        assert len(operators.jobs) == 1
        richer = lab.settings(launch={"budget_usd": 60.0}, placement={"grace_seconds": 15})
        assert lab.launch(richer) == {"step": STEPS, "attempts": 1, "stopped": None}


def test_a_run_that_is_terminated_saves_and_leaves_nothing_behind(lab: Lab) -> None:
    config = lab.settings()
    with lab.operators(config, Life(steps=9, codes=None)) as operators:
        operators.on("holding", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            lab.launch(config)
        assert not lab.left
        assert lab.codes(config) == [75]
        assert lab.launch(config) == {"step": STEPS, "attempts": 2, "stopped": None}
    assert_books_are_right(lab, config)


@pytest.mark.parametrize(("code", "error"), [(78, ConfigError), (65, DataError)])
def test_what_the_trainer_refuses_is_not_tried_again(lab: Lab, code: int, error: type[DarkroomError]) -> None:
    config = lab.settings()
    said = '{"event": "loading"}\nrank 0: shard 7 is missing\n'
    with lab.operators(config, Life(codes=(code, 75), said=said)) as operators, pytest.raises(error) as refused:
        lab.launch(config)
    assert str(refused.value) == "rank 0: shard 7 is missing"
    assert len(operators.jobs) == operators.lives == 1
    assert not lab.left


def test_too_many_crashes_end_it_with_the_last_lines_of_the_log(lab: Lab) -> None:
    config = lab.settings(launch={"restarts": {"max_crashes": 1}})
    with lab.operators(config, Life(codes=(1,)), Life(codes=(9,), said="the disk is full")) as operators:
        with pytest.raises(DarkroomError, match=r"exit code 9 .* 0 preemptions .* 2 crashes.*\nthe disk is full"):
            lab.launch(config)
        assert operators.lives == 2
        assert not lab.left


def test_words_that_kubernetes_does_not_tell_are_read_from_the_log(lab: Lab) -> None:
    config = lab.settings(launch={"restarts": {"max_crashes": 0}})

    def write() -> None:
        pods = [found["metadata"]["name"] for found in lab.server.store.list("pods")]
        lab.server.logs = {pod: f"the disk of {pod} is full" for pod in pods}

    with lab.operators(config, Life(codes=(9,))) as operators:
        operators.on("running", write)
        with pytest.raises(DarkroomError, match=r"\nthe disk of \S+-node-0-0-00001 is full"):
            lab.launch(config)


def test_a_jobset_that_gives_up_sooner_than_the_settings_is_submitted_anew(lab: Lab) -> None:
    config = lab.settings(launch={"restarts": {"max_crashes": 2}})
    with lab.operators(config, Life(codes=(1,)), Life(codes=(1,))) as operators:
        operators.max_restarts = 0
        assert lab.launch(config)["attempts"] == 3
    assert len(operators.jobs) == 3
    assert operators.most == 1


def test_restarts_without_a_newer_checkpoint_come_to_an_end(lab: Lab) -> None:
    config = lab.settings(launch={"restarts": {"max_without_progress": 2}})
    lives = [Life(steps=3, codes=(75,), saves=False)] * 5
    with (
        lab.operators(config, *lives) as operators,
        pytest.raises(DarkroomError, match=r"75.*\b3.*max_without_progress is 2"),
    ):
        lab.launch(config)
    assert operators.lives in (3, 4), "the fourth may have begun"


def test_a_container_that_cannot_start_ends_it_with_the_reason(lab: Lab) -> None:
    config = lab.settings(launch={"stuck_minutes": 0.2 / 60})
    with (
        lab.operators(config, Life(stuck="ImagePullBackOff")),
        pytest.raises(ConfigError, match="ImagePullBackOff: no"),
    ):
        lab.launch(config)
    assert not lab.left


def test_a_job_that_somebody_deletes_is_made_again(lab: Lab) -> None:
    config = lab.settings()
    with lab.operators(config, Life(steps=6, codes=None)) as operators:
        operators.on("holding", lambda: delete_all(lab))
        assert lab.launch(config) == {"step": STEPS, "attempts": 2, "stopped": None}
    assert len(operators.jobs) == 2
    assert operators.most == 1
    assert lab.ears.told("job-lost")


def delete_all(lab: Lab) -> None:
    for job in lab.server.store.list("trainjobs"):
        lab.server.store.delete("trainjobs", job["metadata"]["name"])


def test_somebody_elses_job_of_that_name_stays(lab: Lab) -> None:
    config = lab.settings()
    training = render.Training(config.run, lab.workdir.url, "", "", "", 0, config.train)
    name = f"{render.job_label(training)}-1"
    lab.server.store.create("trainjobs", {"metadata": {"name": name}})
    with pytest.raises(ConfigError, match=f"{name} .* lab .*{config.run} "):
        lab.launch(config)
    assert lab.left == [name]


def test_another_dataset_begins_anew_once_the_old_training_is_gone(lab: Lab) -> None:
    config = lab.settings()
    with lab.operators(config, Life(steps=9, codes=None)) as operators:
        operators.on("holding", lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            lab.launch(config)
        lab.launch(config, dataset="another")
        assert json.loads(lab.run(config).read("launch.json"))["standing"]["preemptions"] == 0
    assert lab.codes(config) == [0], "the records are those of the new training"
    assert operators.most == 1


def test_what_the_cluster_refuses_is_told_in_its_own_words(lab: Lab) -> None:
    def refuse(method: str, _path: str) -> None:
        if method == "POST":
            raise Refusal(400, "Invalid", "admission webhook denied the request: no such trainingRuntime")

    lab.server.before = refuse
    with pytest.raises(ConfigError, match=r"denied the request: no such trainingRuntime.*placement"):
        lab.launch(lab.settings())

    def forbid(_method: str, _path: str) -> None:
        raise Refusal(403, "Forbidden", "pods is forbidden")

    lab.server.before = forbid
    with pytest.raises(ConfigError, match=r"403 .*pods is forbidden.* role"):
        lab.launch(lab.settings())


def test_the_api_may_be_away_and_forget_and_break_off_in_the_middle_of_a_line(lab: Lab) -> None:
    config = lab.settings()
    days: list[Callable[[], None]] = [
        lambda: away_for(lab, 0.5),
        lambda: forgets(lab, seconds=0),
        lambda: errors_for(lab, 5),
        lambda: forgets(lab, seconds=0.3),
    ]
    lives = [Life(codes=(75,)), Life(codes=(1,)), Life(codes=(75,))]
    with lab.operators(config, *lives) as operators:
        for state, day in zip(("pending", "pulling", "running", "ended"), days, strict=True):
            operators.on(state, lambda day=day: threading.Thread(target=day).start())  # type: ignore[misc]
        assert lab.launch(config)["step"] == STEPS
    assert len(operators.jobs) == 1
    assert operators.most == 1
    assert_books_are_right(lab, config)


def away_for(lab: Lab, seconds: float) -> None:
    with lab.outage:
        lab.server.stop()
        time.sleep(seconds)
        lab.server.start()


def forgets(lab: Lab, seconds: float) -> None:
    lab.server.store.forget()
    lab.server.break_streams(torn=True)
    away_for(lab, seconds)


def errors_for(lab: Lab, times: int) -> None:
    left = [times]

    def overloaded(_method: str, _path: str) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise Refusal(503 if left[0] % 2 else 429, "TooManyRequests", "come back later")

    lab.server.before = overloaded
    lab.server.break_streams()


def test_an_api_that_stays_away_ends_the_launcher_and_not_the_training(lab: Lab) -> None:
    config = lab.settings()
    with lab.operators(config, Life(steps=5, codes=None)) as operators:
        operators.on("holding", lambda: threading.Thread(target=lab.server.stop).start())
        with pytest.raises(DarkroomError, match=r"0\.00833\d* minutes.*launch\.api_away_minutes"):
            lab.launch(config, patience=0.5)
        lab.server.start()
        (gang,) = operators.gangs
        gang.life = Life(steps=STEPS)
        gang.until = STEPS
        assert lab.launch(config) == {"step": STEPS, "attempts": 1, "stopped": None}
    assert len(operators.jobs) == operators.lives == 1
    assert_books_are_right(lab, config)


def test_the_newest_launcher_is_the_one_that_counts(lab: Lab) -> None:
    config = lab.settings()

    def take_over() -> None:
        (job,) = lab.server.store.list("trainjobs")
        change = {"metadata": {"annotations": {render.LAUNCHER: "another"}}}
        lab.cluster().patch(job["metadata"]["name"], change)

    with lab.operators(config, Life(steps=5, codes=None)) as operators:
        operators.on("holding", lambda: threading.Thread(target=take_over).start())
        with pytest.raises(DarkroomError, match=rf"another .*{config.run}"):
            lab.launch(config)
    assert len(lab.server.store.list("trainjobs")) == 1, "the job is the other's now"


def test_the_workflow_owns_the_job_and_a_later_one_takes_it_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": f"flow-{name}", "uid": name}
        lab.server.store.create("pods", {"metadata": {"name": name, "ownerReferences": [owner]}})
    config = lab.settings()
    monkeypatch.setenv("KFP_POD_NAME", "first")
    with lab.operators(config, Life(steps=5, codes=None)) as operators:
        operators.on("holding", lambda: threading.Thread(target=lab.server.stop).start())
        with pytest.raises(DarkroomError, match=r"launch\.api_away_minutes"):
            lab.launch(config, patience=0.3)
        lab.server.start()
        (job,) = lab.server.store.list("trainjobs")
        assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == ["first"]
        monkeypatch.setenv("KFP_POD_NAME", "second")
        owners: list[str] = []

        def look(method: str, path: str) -> None:
            if method == "DELETE":
                (job,) = lab.server.store.list("trainjobs")
                owners.extend(owner["uid"] for owner in job["metadata"]["ownerReferences"])

        lab.server.before = look
        (gang,) = operators.gangs
        gang.life, gang.until = Life(steps=STEPS), STEPS
        lab.launch(config)
    assert owners == ["second"]


def test_what_the_cluster_warns_of_while_machines_are_waited_for_is_told(lab: Lab) -> None:
    config = lab.settings(launch={"fallback": {"wait_minutes": 0.3 / 60}})
    job = f"{render.job_label(render.Training(config.run, lab.workdir.url, '', '', '', 0, config.train))}-1"
    about = {"kind": "Pod", "name": f"{job}-node-0-0-abcde"}
    warning = {"metadata": {"name": "w"}, "involvedObject": about, "reason": "FailedScheduling", "count": 3}
    lab.server.store.create("events", {**warning, "type": "Warning", "message": "0/9 nodes are available"})
    with lab.operators(config, Life(scheduled=0)):
        lab.launch(config)
    assert lab.ears.told("cluster-warning") == [
        {"event": "cluster-warning", "job": job, "warning": "FailedScheduling: 0/9 nodes are available"}
    ]


def test_a_budget_without_a_price_is_refused_before_anything_is_asked_for(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"launch\.budget_usd .*5 \$.*on-demand, spot.*launch\.usd_per_hour"):
        lab.launch(lab.settings(launch={"usd_per_hour": None, "budget_usd": 5.0}))
    assert not lab.server.seen or {method for method, _path in lab.server.seen} == {"GET"}
