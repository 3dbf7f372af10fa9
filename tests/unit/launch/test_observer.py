"""What the launcher's copy of the cluster says: when it is complete, and every update of a pod, in order."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from kubernetes import client

from components.errors import ConfigError
from pipeline.launch.api import ApiUnreachable, Cluster
from pipeline.launch.observer import ClusterObserver
from pipeline.launch.watch import WatchEvent


class Clock:
    """Seconds that pass only if a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(clock: Clock) -> ClusterObserver:
    """An observer whose watchers are not started: the test puts their events into its queue."""
    return ClusterObserver(Cluster(client.ApiClient(), "lab", patience=60.0), "label", clock)


def process(observer: ClusterObserver, *events: WatchEvent) -> bool:
    """Let the observer process some events, and return whether its copy is complete then."""
    for event in events:
        observer._queue.put(event)
    return observer.wait(0.001)


def pod(uid: str, second: int = 0, **status: Any) -> dict[str, Any]:
    meta = {"name": uid, "uid": uid, "creationTimestamp": f"2026-11-21T10:00:{second:02}Z", "labels": {}}
    return {"metadata": meta, "status": status}


def take_pod_updates(observer: ClusterObserver) -> list[tuple[str, bool]]:
    """Take all updates of pods: uid, and whether it was deleted."""
    updates = []
    while observer.next_pod() is not None:
        update = observer.take_pod_update()
        updates.append((update.pod.uid, update.is_deleted))
    return updates


LISTED = (WatchEvent("listed", "job"), WatchEvent("listed", "pod"))


def test_the_copy_is_complete_once_jobs_and_pods_were_listed(observer: ClusterObserver) -> None:
    assert not process(observer)
    assert not process(observer, LISTED[0])
    assert process(observer, LISTED[1])


def test_the_copy_is_not_current_while_the_api_is_unreachable(observer: ClusterObserver, clock: Clock) -> None:
    unreachable = WatchEvent("unreachable", "pod", problem="503")
    assert process(observer, *LISTED)
    assert not process(observer, unreachable)
    clock.now = 59.0
    assert not process(observer, unreachable, WatchEvent("connected", "job"))
    assert process(observer, WatchEvent("connected", "pod"))
    clock.now = 200.0
    assert not process(observer, unreachable), "it was connected in between"
    clock.now = 260.0
    with pytest.raises(ApiUnreachable, match="503"):
        process(observer, unreachable)


def test_an_api_that_rejects_the_watch_ends_it(observer: ClusterObserver) -> None:
    with pytest.raises(ConfigError, match="403 Forbidden"):
        process(observer, WatchEvent("rejected", "pod", problem="403 Forbidden"))


def test_pods_are_reported_in_the_order_of_their_creation(observer: ClusterObserver) -> None:
    process(observer, LISTED[0], WatchEvent("listed", "pod", (pod("second", 2), pod("third", 3), pod("first", 1))))
    assert take_pod_updates(observer) == [("first", False), ("second", False), ("third", False)]


def test_what_a_list_lacks_was_deleted_before_what_is_new_was_created(observer: ClusterObserver) -> None:
    process(observer, LISTED[0], WatchEvent("listed", "pod", (pod("earlier"), pod("both", 1))))
    take_pod_updates(observer)
    process(observer, WatchEvent("listed", "pod", (pod("new", 2), pod("both", 1))))
    assert take_pod_updates(observer) == [("earlier", True), ("both", False), ("new", False)]
    assert not observer.has_pod("earlier")
    assert observer.has_pod("new")


def test_a_pod_exists_until_the_update_of_its_deletion_is_taken(observer: ClusterObserver) -> None:
    process(observer, *LISTED, WatchEvent("changed", "pod", (pod("a"),)), WatchEvent("deleted", "pod", (pod("a"),)))
    assert observer.has_pod("a")
    assert take_pod_updates(observer) == [("a", False), ("a", True)]
    assert not observer.has_pod("a")


def test_pods_that_have_ended_are_not_live(observer: ClusterObserver) -> None:
    terminated = {"exitCode": 0, "finishedAt": "2026-11-21T10:01:00Z"}
    container = {"name": "node", "state": {"terminated": terminated}}
    ended = WatchEvent("changed", "pod", (pod("ended", phase="Succeeded", containerStatuses=[container]),))
    process(observer, *LISTED, ended)
    assert not observer.has_live_pods
    process(observer, WatchEvent("changed", "pod", (pod("live"),)), ended)
    assert observer.has_live_pods
    process(observer, WatchEvent("deleted", "pod", (pod("live"),)))
    assert not observer.has_live_pods


def test_a_job_is_what_was_last_reported_of_it(observer: ClusterObserver) -> None:
    first, second = ({"metadata": {"uid": "j"}, "status": status} for status in ("one", "two"))
    process(observer, *LISTED, WatchEvent("changed", "job", (first,)), WatchEvent("changed", "job", (second,)))
    assert observer.job("j") == second
    assert observer.next_pod() is None
    process(observer, WatchEvent("deleted", "job", (second,)))
    assert observer.job("j") is None


def test_a_signal_requests_a_stop_and_the_handlers_are_restored(
    observer: ClusterObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "_watchers", [])
    before = signal.getsignal(signal.SIGTERM)
    with observer:
        signal.raise_signal(signal.SIGTERM)
        process(observer)
        assert observer.stop_requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_whoever_is_asked_to_stop_waits_no_longer_than_it_may(clock: Clock) -> None:
    cluster = Cluster(client.ApiClient(), "lab", patience=60.0)
    observer = ClusterObserver(cluster, "label", clock, stop_seconds=20.0)
    clock.now = 100.0
    assert not observer.must_stop_now
    observer._request_stop(signal.SIGTERM, None)
    assert cluster.patience == 20, "a call that is repeated right now gives up sooner, too"
    clock.now = 119.0
    assert not observer.must_stop_now
    observer._request_stop(signal.SIGTERM, None)
    clock.now = 120.0
    assert observer.must_stop_now, "the second signal gives no more time"
