"""What is in the way of a job: its warnings with their reasons, and since when it should have pods."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from components.progress import Progress
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.launch.context import LaunchContext
from pipeline.launch.diagnosis.obstacles import MAX_CHARACTERS, Obstacles, legible
from pipeline.launch.pods import Gang, GangPod
from pipeline.launch.state import OpenAttempt, TrainJobRecord

DENIED = 'admission webhook "vjobset.kb.io" denied the request: spec.replicatedJobs: '


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("FailedScheduling: 0/9 nodes are available", "FailedScheduling: 0/9 nodes are available"),
        (
            f'{DENIED}Invalid value: [{{"name":"node"}}]: field is immutable',
            f"{DENIED}Invalid value: …: field is immutable",
        ),
        (f'{DENIED}Invalid value: [{{"name":"{"x" * 2000}'[:1021] + "...", f"{DENIED}Invalid value: …"),
        ("x" * 2000, "x" * (MAX_CHARACTERS - 1) + "…"),
        ("spec.count: Invalid value: 3: must be less than 2", "spec.count: Invalid value: 3: must be less than 2"),
    ],
)
def test_a_warning_is_shown_without_the_value_that_hides_its_reason(text: str, shown: str) -> None:
    assert legible(text) == shown
    assert len(shown) <= MAX_CHARACTERS


class Cluster:
    """Answers as the test says, and counts how often it is asked."""

    admitted: float | None = None
    asked = 0

    def warnings(self, _name: str) -> list[tuple[str, str]]:
        return [("uid 1", "AdmissionFailed: spec.trainer: Invalid value: {}: field is immutable")]

    def admitted_at(self, _uid: str) -> float | None:
        self.asked += 1
        return self.admitted


def obstacles_of(folder: Path, queue: str | None) -> tuple[Obstacles, Cluster, io.StringIO]:
    text, cluster = io.StringIO(), Cluster()
    values: dict[str, Any] = {"name": "x", "ingest": {"source": "x"}, "placement": {"queue": queue}}
    data = ("base", "key", "digest", Progress(text))
    return Obstacles(cluster, LaunchContext(RunConfig.parse(values), open_storage(str(folder)), *data)), cluster, text  # type: ignore[arg-type]


def attempt(requested_at: float = 100.0, uid: str = "job", **pods: GangPod) -> OpenAttempt:
    return OpenAttempt(0, TrainJobRecord("job", uid, "spot", 1, 1.0), requested_at, 0, Gang(pods))


def test_a_job_may_have_pods_from_when_it_was_admitted(tmp_path: Path) -> None:
    obstacles, cluster, text = obstacles_of(tmp_path, "gpus")
    assert obstacles.look(attempt(), 200.0, is_suspended=False) is None, "it waits for quota"
    cluster.admitted = 210.0
    assert obstacles.look(attempt(), 229.0, is_suspended=False) is None, "it is not asked all the time"
    assert obstacles.look(attempt(), 230.0, is_suspended=False) == 210
    assert cluster.asked == 2
    assert obstacles.look(attempt(requested_at=260.0), 261.0, is_suspended=False) == 260, (
        "an earlier attempt had pods until then"
    )
    pod = GangPod("p", "job", "p", 0, 0, 0.0)
    assert obstacles.look(attempt(p=pod), 300.0, is_suspended=False) is None
    assert text.getvalue().count("cluster-warning") == 1
    assert "Invalid value: …: field is immutable" in obstacles.summary


def test_without_a_queue_it_may_have_them_at_once(tmp_path: Path) -> None:
    obstacles, cluster, text = obstacles_of(tmp_path, None)
    assert obstacles.look(attempt(), 399.0, is_suspended=False) == 100
    assert "job-not-started" not in text.getvalue()
    assert obstacles.look(attempt(), 401.0, is_suspended=False) == 100
    assert obstacles.look(attempt(), 402.0, is_suspended=False) == 100
    assert text.getvalue().count("job-not-started") == 1, "said once, half-way to launch.unstarted_minutes"
    assert cluster.asked == 0


def test_a_job_that_somebody_holds_back_waits_whether_it_names_a_queue_or_not(tmp_path: Path) -> None:
    obstacles, cluster, _ = obstacles_of(tmp_path, None)
    assert obstacles.look(attempt(), 10_000.0, is_suspended=True) is None
    cluster.admitted = 10_050.0
    assert obstacles.look(attempt(), 10_060.0, is_suspended=True) == 10_050
