"""Pods as the API tells of them: which belong together, what they ended with, and where their time went."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.launch.pods import Gang, Pod, gang_seconds

START = 1_800_000_000


def at(second: float) -> str:
    return datetime.fromtimestamp(START + second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(index: int = 0, restart: int = 0, uid: str = "", **status: Any) -> Pod:
    labels = {
        "jobset.sigs.k8s.io/jobset-name": "job",
        "jobset.sigs.k8s.io/restart-attempt": str(restart),
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    meta = {"name": f"job-node-0-{index}", "uid": uid or f"{restart}-{index}", "labels": labels}
    return Pod.read({"metadata": {**meta, "creationTimestamp": at(status.pop("created", 0))}, "status": status})


def container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "istio-proxy", "state": {}}, {"name": "node", "state": state}]}


def condition(kind: str, second: float) -> dict[str, str]:
    return {"type": kind, "status": "True", "lastTransitionTime": at(second)}


def ended(code: int, second: float, index: int = 0, restart: int = 0, **status: Any) -> Pod:
    done = {"exitCode": code, "startedAt": at(10), "finishedAt": at(second)}
    phase = "Failed" if code else "Succeeded"
    return pod(index, restart, phase=phase, **container(terminated=done), **status)


def gang(*pods: Pod) -> Gang:
    whole = Gang({})
    for one in pods:
        whole = whole.seen(one)
    return whole


def test_a_pod_is_read_from_whatever_part_of_it_is_known() -> None:
    new = Pod.read({"metadata": {"name": "p", "uid": "u", "creationTimestamp": at(0)}})
    assert (new.restart, new.index, new.scheduled, new.ended, new.code) == (0, 0, None, None, None)
    scheduled = [{**condition("PodScheduled", 3), "status": "False"}]
    assert pod(conditions=scheduled).scheduled is None
    running = pod(
        2, 7, phase="Running", conditions=[condition("PodScheduled", 3)], **container(running={"startedAt": at(9)})
    )
    assert (running.index, running.restart, running.scheduled, running.started) == (2, 7, START + 3, START + 9)
    assert ended(75, 60).ended == START + 60
    assert ended(0, 60).code == 0


def test_a_pod_whose_machine_is_gone_has_ended_without_a_code_of_its_own() -> None:
    lost = pod(phase="Failed", conditions=[condition("PodScheduled", 3), condition("DisruptionTarget", 90)])
    assert (lost.ended, lost.code, lost.taken) == (START + 90, 137, True)


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [("ImagePullBackOff", True), ("CreateContainerConfigError", True), ("ContainerCreating", False)],
)
def test_what_no_waiting_mends_is_told(reason: str, stuck: bool) -> None:
    waiting = gang(pod(**container(waiting={"reason": reason, "message": "no such image"})))
    assert waiting.stuck == (f"job-node-0-0: {reason}: no such image" if stuck else None)


@pytest.mark.parametrize(
    ("pods", "code", "fate"),
    [
        ([ended(0, 60, 0), ended(0, 60, 1)], 0, "done"),
        ([ended(75, 60, 0), ended(75, 61, 1)], 75, "free"),
        # A rank that crashed has the others stopped, who then save: that is a crash, and no preemption.
        ([ended(1, 60, 0), ended(75, 65, 1)], 1, "counted"),
        ([ended(75, 65, 0), ended(1, 60, 1)], 1, "counted"),
        ([ended(1, 60, 0), ended(75, 60, 1)], 75, "free"),
        ([ended(1, 50, 0), ended(78, 65, 1)], 78, "fatal"),
        ([ended(1, 50, 0), ended(65, 65, 1)], 65, "fatal"),
        ([ended(0, 50, 0), ended(9, 65, 1)], 9, "counted"),
        ([ended(1, 50, 0), ended(143, 65, 1, conditions=[condition("DisruptionTarget", 49)])], 1, "free"),
    ],
)
def test_the_pod_that_ended_first_tells_why_unless_one_forbids_a_restart(pods: list[Pod], code: int, fate: str) -> None:
    assert gang(*pods).is_over
    assert (gang(*pods).code, gang(*pods).fate) == (code, fate)


def test_pods_of_one_start_belong_together() -> None:
    running = gang(pod(0))
    assert running.owns(pod(1))
    assert not running.owns(pod(0, restart=1)), "JobSet has made the gang anew"
    assert not running.owns(pod(0, uid="another")), "Kueue has let the same job go on"
    over = gang(ended(75, 60, 0))
    assert over.owns(ended(75, 61, 1)), "nobody looked while it ran"
    assert over.owns(pod(1, uid="same-second", created=60)), "the API tells whole seconds"
    assert not over.owns(pod(1, uid="late", created=70))
    assert Gang({}).owns(pod(5, restart=9))
    assert not Gang({}).is_over
    assert not Gang({}).is_running


def test_a_container_that_was_started_again_has_ended_all_the_same() -> None:
    done = {"exitCode": 1, "startedAt": at(10), "finishedAt": at(40), "message": "the disk is full"}
    state = {"name": "node", "state": {"running": {"startedAt": at(41)}}, "lastState": {"terminated": done}}
    again = pod(phase="Running", containerStatuses=[state])
    assert (again.code, again.started, again.ended, again.said) == (1, START + 10, START + 40, "the disk is full")


def test_a_container_has_ended_before_its_pod_has() -> None:
    done = {"exitCode": 75, "startedAt": at(10), "finishedAt": at(40)}
    assert pod(phase="Running", **container(terminated=done)).ended == START + 40


def test_of_pods_that_end_alike_in_one_second_the_first_tells() -> None:
    words = [{"exitCode": 1, "finishedAt": at(60), "message": f"of pod {index}"} for index in range(3)]
    pods = [pod(index, phase="Failed", **container(terminated=words[index])) for index in (2, 1, 0)]
    assert gang(*pods).said == "of pod 0"


def test_what_has_ended_is_no_node_that_is_there() -> None:
    where: dict[str, Any] = {"conditions": [condition("PodScheduled", 3)]}
    assert gang(pod(0, **where), pod(1)).scheduled == 1
    assert gang(pod(0, **where), ended(0, 60, 1, **where)).scheduled == 1


def test_a_gang_costs_from_its_first_node_and_runs_from_its_last_container() -> None:
    pods = [
        pod(index, conditions=[condition("PodScheduled", 3 + index)], **container(running={"startedAt": at(9 + index)}))
        for index in (0, 1)
    ]
    assert (gang(*pods).began_to_cost, gang(*pods).began_to_run) == (START + 3, START + 10)
    assert gang(ended(0, 60, 0), ended(0, 70, 1)).ended == START + 70


def test_a_container_that_starts_after_all_or_goes_is_not_stuck() -> None:
    stuck = pod(**container(waiting={"reason": "ImagePullBackOff"}))
    assert gang(stuck).stuck is not None
    assert gang(stuck).seen(pod(**container(running={"startedAt": at(9)}))).stuck is None
    assert gang(stuck).gone(stuck.uid, START + 9.0).stuck is None


def test_what_was_seen_once_stays_known() -> None:
    first = ended(75, 60, conditions=[condition("PodScheduled", 3)])
    later = gang(first).seen(pod(0))
    assert later.pods[first.uid] == first
    assert gang(first).gone(first.uid, START + 99.0).ended == START + 60
    assert gang(pod(0)).gone("0-0", START + 99.0).is_over


def test_an_end_that_is_noticed_late_was_before_the_next_start() -> None:
    lost = gang(ended(75, 60, 0), pod(1)).gone("0-1", START + 500.0).ended_before(START + 70.0)
    assert lost.ended == START + 70
    assert lost.code == 75
    assert gang(ended(75, 60)).ended_before(START + 50.0).ended == START + 60, "that end was told, not noticed"


def test_a_gang_is_kept_and_read_again() -> None:
    whole = gang(ended(75, 60, 0), pod(1))
    assert Gang.load(whole.dump()) == whole


@pytest.mark.parametrize(
    ("pods", "pending", "pulling"),
    [
        ([ended(0, 60, conditions=[condition("PodScheduled", 4)])], 4, 6),
        ([pod(phase="Failed", conditions=[condition("PodScheduled", 4), condition("DisruptionTarget", 9)])], 4, 5),
        ([ended(0, 60)], 60, 0),
    ],
)
def test_time_before_a_gang_runs_is_pending_and_pulling(pods: list[Pod], pending: float, pulling: float) -> None:
    assert gang_seconds(gang(*pods), START) == {"pending": pending, "pulling": pulling}


def test_a_job_that_was_asked_for_after_its_pods_began_waits_for_nothing() -> None:
    """Clocks differ, and the API tells whole seconds."""
    assert gang_seconds(gang(ended(0, 60, conditions=[condition("PodScheduled", 4)])), START + 20.0) == {
        "pending": 0,
        "pulling": 0,
    }
