"""What a denial means: a right that is missing, or an API server that does not know its own rules yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from components.errors import ConfigError
from pipeline.launch.api import ApiUnreachable, Cluster
from pipeline.launch.watch import EventQueue, Watcher

PATIENCE = 1800.0


class Api:
    """Answers in the order given, each call after the other; time passes only while the client waits."""

    def __init__(self, *answers: Any) -> None:
        self.now = 0.0
        self.answers: Iterator[Any] = iter(answers)
        self.cluster = Cluster(client.ApiClient(), "lab", PATIENCE, self.sleep, lambda: self.now)
        for name in ("list", "get", "patch"):
            for kind in ("", "namespaced_"):
                setattr(self.cluster.objects, f"{name}_{kind}custom_object", self.answer)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def answer(self, *_: Any, **__: Any) -> Any:
        answer = next(self.answers)
        if isinstance(answer, int):
            raise denial(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer


def denial(status: int, message: str = 'pods is forbidden: User "me" cannot list resource "pods"') -> Any:
    error = client.ApiException(status=status, reason="Forbidden")
    error.body = json.dumps({"message": message})
    return error


EMPTY: dict[str, Any] = {"items": []}


def test_a_right_that_is_missing_at_first_contact_is_named_at_once() -> None:
    api = Api(403)
    with pytest.raises(ConfigError, match=r"list TrainJobs in namespace lab: 403.*bind the chart's role"):
        api.cluster.list_jobs("x")
    assert api.now == 0


@pytest.mark.parametrize("status", [401, 403])
def test_what_was_allowed_before_is_waited_for(status: int) -> None:
    api = Api(EMPTY, *[status] * 30, EMPTY)
    assert api.cluster.list_jobs("x") == api.cluster.list_jobs("x") == []
    assert 60 < api.now < PATIENCE


def test_and_not_longer_than_any_other_outage() -> None:
    api = Api(EMPTY, *[403] * 1000)
    api.cluster.list_jobs("x")
    with pytest.raises(ApiUnreachable, match=r"30 minutes \(list TrainJobs: 403 Forbidden"):
        api.cluster.list_jobs("x")
    assert api.now <= PATIENCE


def test_what_was_never_tried_is_waited_for_a_minute_and_once() -> None:
    api = Api(EMPTY, *[403] * 1000)
    api.cluster.list_jobs("x")
    for _ in range(2):
        with pytest.raises(ConfigError, match="change a TrainJob"):
            api.cluster.patch_job("job", {})
    assert 0 < api.now < 90


def test_whoever_may_not_read_workloads_is_not_kept() -> None:
    api = Api(EMPTY, *[403] * 1000)
    api.cluster.list_jobs("x")
    assert api.cluster.admitted_at("uid") is None
    waited = api.now
    assert api.cluster.admitted_at("uid") is None
    assert api.now == waited


@pytest.mark.parametrize(
    "message",
    [
        'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: no such runtime',
        'trainjobs "x" is forbidden: exceeded quota: team, requested: count/trainjobs=1',
    ],
)
def test_an_object_that_is_rejected_is_no_right_that_is_missing(message: str) -> None:
    api = Api(EMPTY, EMPTY, denial(403, message))
    api.cluster.list_jobs("x")
    api.cluster.patch_job("job", {})
    with pytest.raises(ConfigError, match=r"403 .*; check placement"):
        api.cluster.patch_job("job", {})
    assert api.now == 0, "waiting does not help"


def test_a_watcher_tells_a_missing_right_from_one_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(has_listed: bool) -> str:
        queue: EventQueue = EventQueue()
        watcher = Watcher(Cluster(client.ApiClient(), "lab", PATIENCE), "pod", "x", queue, lambda _: watcher.stop())

        def listed() -> str:
            watcher._has_listed = has_listed
            return "1"

        def deny(_version: str) -> Iterator[str]:
            raise denial(403)

        monkeypatch.setattr(watcher, "_list", listed)
        monkeypatch.setattr(watcher, "_watch", deny)
        watcher._run()
        return queue.get_nowait().type

    assert report(has_listed=False) == "rejected"
    assert report(has_listed=True) == "unreachable"
