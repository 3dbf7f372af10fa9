"""Pods as the API reports them: which belong together, what they ended with, and where their time went."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.launch.pods import Gang, GangPod, startup_seconds

START = 1_800_000_000


def at(second: float) -> str:
    return datetime.fromtimestamp(START + second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(index: int = 0, restart: int = 0, uid: str = "", **status: Any) -> GangPod:
    labels = {
        "jobset.sigs.k8s.io/jobset-name": "job",
        "jobset.sigs.k8s.io/restart-attempt": str(restart),
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    meta = {"name": f"job-node-0-{index}", "uid": uid or f"{restart}-{index}", "labels": labels}
    return GangPod.read({"metadata": {**meta, "creationTimestamp": at(status.pop("created", 0))}, "status": status})


def container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "istio-proxy", "state": {}}, {"name": "node", "state": state}]}


def condition(kind: str, second: float) -> dict[str, str]:
    return {"type": kind, "status": "True", "lastTransitionTime": at(second)}


def ended_pod(code: int, second: float, index: int = 0, restart: int = 0, **status: Any) -> GangPod:
    terminated = {"exitCode": code, "startedAt": at(10), "finishedAt": at(second)}
    phase = "Failed" if code else "Succeeded"
    return pod(index, restart, phase=phase, **container(terminated=terminated), **status)


def gang(*pods: GangPod) -> Gang:
    result = Gang({})
    for one in pods:
        result = result.update(one)
    return result


def test_a_pod_is_read_whatever_part_of_its_status_is_missing() -> None:
    new = GangPod.read({"metadata": {"name": "p", "uid": "u", "creationTimestamp": at(0)}})
    assert (new.restart, new.index, new.scheduled_at, new.ended_at, new.exit_code) == (0, 0, None, None, None)
    scheduled = [{**condition("PodScheduled", 3), "status": "False"}]
    assert pod(conditions=scheduled).scheduled_at is None
    running = pod(
        2, 7, phase="Running", conditions=[condition("PodScheduled", 3)], **container(running={"startedAt": at(9)})
    )
    assert (running.index, running.restart, running.scheduled_at, running.started_at) == (2, 7, START + 3, START + 9)
    assert ended_pod(75, 60).ended_at == START + 60
    assert ended_pod(0, 60).exit_code == 0


def test_a_pod_whose_node_is_lost_has_ended_without_an_exit_code_of_its_own() -> None:
    lost = pod(phase="Failed", conditions=[condition("PodScheduled", 3), condition("DisruptionTarget", 90)])
    assert (lost.ended_at, lost.exit_code, lost.node_lost) == (START + 90, 137, True)


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [("ImagePullBackOff", True), ("CreateContainerConfigError", True), ("ContainerCreating", False)],
)
def test_only_what_waiting_does_not_solve_is_a_stuck_reason(reason: str, stuck: bool) -> None:
    waiting = gang(pod(**container(waiting={"reason": reason, "message": "no such image"})))
    assert waiting.stuck_reason == (f"job-node-0-0: {reason}: no such image" if stuck else None)


@pytest.mark.parametrize(
    ("pods", "exit_code", "kind"),
    [
        ([ended_pod(0, 60, 0), ended_pod(0, 60, 1)], 0, "finished"),
        ([ended_pod(75, 60, 0), ended_pod(75, 61, 1)], 75, "free"),
        # If a rank crashes, the others are stopped and save: that is a crash, not a preemption.
        ([ended_pod(1, 60, 0), ended_pod(75, 65, 1)], 1, "counted"),
        ([ended_pod(75, 65, 0), ended_pod(1, 60, 1)], 1, "counted"),
        ([ended_pod(1, 60, 0), ended_pod(75, 60, 1)], 75, "free"),
        ([ended_pod(1, 50, 0), ended_pod(78, 65, 1)], 78, "fatal"),
        ([ended_pod(1, 50, 0), ended_pod(65, 65, 1)], 65, "fatal"),
        ([ended_pod(0, 50, 0), ended_pod(9, 65, 1)], 9, "counted"),
        ([ended_pod(1, 50, 0), ended_pod(143, 65, 1, conditions=[condition("DisruptionTarget", 49)])], 1, "free"),
    ],
)
def test_the_pod_that_failed_first_decides_unless_one_forbids_a_restart(
    pods: list[GangPod], exit_code: int, kind: str
) -> None:
    assert gang(*pods).is_over
    assert (gang(*pods).exit_code, gang(*pods).restart_kind) == (exit_code, kind)


def test_pods_of_one_start_belong_together() -> None:
    running = gang(pod(0))
    assert running.includes(pod(1))
    assert not running.includes(pod(0, restart=1)), "JobSet has created the gang anew"
    assert not running.includes(pod(0, uid="another")), "Kueue has resumed the same job"
    over = gang(ended_pod(75, 60, 0))
    assert over.includes(ended_pod(75, 61, 1)), "nobody watched while it ran"
    assert over.includes(pod(1, uid="same-second", created=60)), "the API rounds to seconds"
    assert not over.includes(pod(1, uid="late", created=70))
    assert Gang({}).includes(pod(5, restart=9))
    assert not Gang({}).is_over
    assert not Gang({}).is_running


def test_a_container_that_was_started_again_has_ended_all_the_same() -> None:
    terminated = {"exitCode": 1, "startedAt": at(10), "finishedAt": at(40), "message": "the disk is full"}
    state = {"name": "node", "state": {"running": {"startedAt": at(41)}}, "lastState": {"terminated": terminated}}
    again = pod(phase="Running", containerStatuses=[state])
    assert (again.exit_code, again.started_at, again.ended_at) == (1, START + 10, START + 40)
    assert again.log_tail == "the disk is full"


def test_a_container_has_ended_before_its_pod_has() -> None:
    terminated = {"exitCode": 75, "startedAt": at(10), "finishedAt": at(40)}
    assert pod(phase="Running", **container(terminated=terminated)).ended_at == START + 40


def test_of_pods_that_fail_alike_in_one_second_the_first_decides() -> None:
    ends = [{"exitCode": 1, "finishedAt": at(60), "message": f"log of pod {index}"} for index in range(3)]
    pods = [pod(index, phase="Failed", **container(terminated=ends[index])) for index in (2, 1, 0)]
    decisive = gang(*pods).decisive_pod
    assert decisive is not None
    assert decisive.log_tail == "log of pod 0"


def test_a_pod_that_has_ended_holds_no_node() -> None:
    scheduled: dict[str, Any] = {"conditions": [condition("PodScheduled", 3)]}
    assert gang(pod(0, **scheduled), pod(1)).scheduled_nodes == 1
    assert gang(pod(0, **scheduled), ended_pod(0, 60, 1, **scheduled)).scheduled_nodes == 1


def test_a_gang_costs_from_its_first_node_and_runs_from_its_last_container() -> None:
    pods = [
        pod(index, conditions=[condition("PodScheduled", 3 + index)], **container(running={"startedAt": at(9 + index)}))
        for index in (0, 1)
    ]
    assert (gang(*pods).first_scheduled_at, gang(*pods).last_started_at) == (START + 3, START + 10)
    assert gang(ended_pod(0, 60, 0), ended_pod(0, 70, 1)).ended_at == START + 70


def test_a_container_that_starts_after_all_or_is_deleted_is_not_stuck() -> None:
    stuck = pod(**container(waiting={"reason": "ImagePullBackOff"}))
    assert gang(stuck).stuck_reason is not None
    assert gang(stuck).update(pod(**container(running={"startedAt": at(9)}))).stuck_reason is None
    assert gang(stuck).mark_deleted(stuck.uid, START + 9.0).stuck_reason is None


def test_what_an_earlier_report_said_is_kept() -> None:
    first = ended_pod(75, 60, conditions=[condition("PodScheduled", 3)])
    later = gang(first).update(pod(0))
    assert later.pods[first.uid] == first
    assert gang(first).mark_deleted(first.uid, START + 99.0).ended_at == START + 60
    assert gang(pod(0)).mark_deleted("0-0", START + 99.0).is_over


def test_an_end_that_was_noticed_late_is_moved_before_the_next_start() -> None:
    lost = gang(ended_pod(75, 60, 0), pod(1)).mark_deleted("0-1", START + 500.0).ended_by(START + 70.0)
    assert lost.ended_at == START + 70
    assert lost.exit_code == 75
    ended = gang(ended_pod(75, 60)).ended_by(START + 50.0)
    assert ended.ended_at == START + 60, "that end was reported, not noticed"


@pytest.mark.parametrize(
    ("pods", "pending", "pulling"),
    [
        ([ended_pod(0, 60, conditions=[condition("PodScheduled", 4)])], 4, 6),
        ([pod(phase="Failed", conditions=[condition("PodScheduled", 4), condition("DisruptionTarget", 9)])], 4, 5),
        ([ended_pod(0, 60)], 60, 0),
    ],
)
def test_time_before_a_gang_runs_is_pending_and_pulling(pods: list[GangPod], pending: float, pulling: float) -> None:
    assert startup_seconds(gang(*pods), START) == {"pending": pending, "pulling": pulling}


def test_a_job_that_was_requested_after_its_pods_started_waits_for_nothing() -> None:
    """Clocks differ, and the API rounds to seconds."""
    assert startup_seconds(gang(ended_pod(0, 60, conditions=[condition("PodScheduled", 4)])), START + 20.0) == {
        "pending": 0,
        "pulling": 0,
    }
