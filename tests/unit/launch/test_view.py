"""What the launcher makes of the news: nothing is decided before all is known, and no end of a pod is missed."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from kubernetes import client
from pipeline.launch.view import View

from components.errors import ConfigError
from pipeline.launch.api import ApiAway, Cluster
from pipeline.launch.watch import News


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> View:
    """A view whose feeds are not started: the test brings the news."""
    return View(Cluster(client.ApiClient(), "lab", patience=60.0), "label", clock)


def hear(view: View, *news: News) -> bool:
    """Let the view hear some news, and tell whether it knows all then."""
    for one in news:
        view._inbox.put(one)
    return view.wait(0.001)


def pod(uid: str, second: int = 0, **status: Any) -> dict[str, Any]:
    meta = {"name": uid, "uid": uid, "creationTimestamp": f"2026-11-21T10:00:{second:02}Z", "labels": {}}
    return {"metadata": meta, "status": status}


def names(view: View) -> list[tuple[str, bool]]:
    """Take all that was told of pods: uid, and whether it was deleted."""
    taken = []
    while view.peek() is not None:
        one, deleted = view.take()
        taken.append((one.uid, deleted))
    return taken


LISTED = (News("listed", "job"), News("listed", "pod"))


def test_all_is_known_once_jobs_and_pods_were_listed(view: View) -> None:
    assert not hear(view)
    assert not hear(view, LISTED[0])
    assert hear(view, LISTED[1])


def test_nothing_is_known_for_certain_while_the_api_is_away(view: View, clock: Clock) -> None:
    assert hear(view, *LISTED)
    assert not hear(view, News("away", "pod", problem="503"))
    clock.now = 59.0
    assert not hear(view, News("away", "pod", problem="503"), News("back", "job"))
    assert hear(view, News("back", "pod"))
    clock.now = 200.0
    assert not hear(view, News("away", "pod", problem="503")), "it was back meanwhile"
    clock.now = 260.0
    with pytest.raises(ApiAway, match="503"):
        hear(view, News("away", "pod", problem="503"))


def test_an_api_that_refuses_ends_it(view: View) -> None:
    with pytest.raises(ConfigError, match="403 Forbidden"):
        hear(view, News("refused", "pod", problem="403 Forbidden"))


def test_pods_are_told_of_in_the_order_in_which_they_were_made(view: View) -> None:
    hear(view, LISTED[0], News("listed", "pod", (pod("second", 2), pod("third", 3), pod("first", 1))))
    assert names(view) == [("first", False), ("second", False), ("third", False)]


def test_what_a_list_lacks_was_deleted_before_what_is_new_was_made(view: View) -> None:
    hear(view, LISTED[0], News("listed", "pod", (pod("old"), pod("both", 1))))
    names(view)
    hear(view, News("listed", "pod", (pod("new", 2), pod("both", 1))))
    assert names(view) == [("old", True), ("both", False), ("new", False)]
    assert not view.has_pod("old")
    assert view.has_pod("new")


def test_a_pod_is_there_until_its_end_was_taken(view: View) -> None:
    hear(view, *LISTED, News("changed", "pod", (pod("a"),)), News("deleted", "pod", (pod("a"),)))
    assert view.has_pod("a")
    assert names(view) == [("a", False), ("a", True)]
    assert not view.has_pod("a")


def test_those_that_have_ended_do_not_live(view: View) -> None:
    done = {"exitCode": 0, "finishedAt": "2026-11-21T10:01:00Z"}
    ended = pod("ended", phase="Succeeded", containerStatuses=[{"name": "node", "state": {"terminated": done}}])
    hear(view, *LISTED, News("changed", "pod", (pod("alive"),)), News("changed", "pod", (ended,)))
    assert view.living == {"alive"}


def test_a_job_is_what_was_told_of_it_last(view: View) -> None:
    first, second = ({"metadata": {"uid": "j"}, "status": status} for status in ("one", "two"))
    hear(view, *LISTED, News("changed", "job", (first,)), News("changed", "job", (second,)))
    assert view.job("j") == second
    assert view.peek() is None
    hear(view, News("deleted", "job", (second,)))
    assert view.job("j") is None


def test_a_view_asks_to_stop_at_a_signal_and_leaves_the_signals_as_they_were(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_feeds", [])
    before = signal.getsignal(signal.SIGTERM)
    with view:
        signal.raise_signal(signal.SIGTERM)
        hear(view)
        assert view.asked
    assert signal.getsignal(signal.SIGTERM) == before
