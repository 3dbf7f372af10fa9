"""The books of a training: each second of an attempt once and in the right state, whatever kills the launcher."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.accounting.ledger import STATES, append_ledger, ledger_lines, read_ledger
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.launch.books import accounting
from pipeline.launch.books.accounting import LAUNCH_EVENTS, EndedAttempt, PricedNodes
from tests.cluster.operators import commit_checkpoint
from tests.stores.mortal import contents, killed_everywhere

NODES = PricedNodes(2, "spot", "p4d.24xlarge", 9.5)
# An attempt of 30 s after 7 s of waiting: it loads for 5 s, trains and saves step 10, and is stopped in step 12.
ATTEMPT = EndedAttempt(
    3, started_at=100.0, ended_at=130.0, exit_code=75, start_step=5, earlier_seconds={"pending": 7.0, "idle": 1.0}
)
EVENTS: list[dict[str, Any]] = [
    {"time": 50.0, "event": "validation", "seconds": 9.0},
    {"time": 105.0, "event": "training", "step": 5},
    {"time": 120.0, "event": "checkpoint", "step": 10, "stall_seconds": 1.0, "trained_seconds": 12.0},
    {"time": 131.0, "event": "validation", "seconds": 9.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def train(run: Storage) -> None:
    """Write what the trainer of `ATTEMPT` writes."""
    run.write_lines("events.jsonl", EVENTS)
    run.write_lines("metrics.jsonl", [{"step": step} for step in range(1, 13)])
    commit_checkpoint(run, 10)


def seconds(run: Storage) -> dict[str, float]:
    """Return the seconds of each state in the ledger that are not 0."""
    return {line.state: line.seconds for line in read_ledger(run) if line.seconds}


def test_an_attempt_is_closed_with_its_own_events_alone(run: Storage) -> None:
    train(run)
    assert accounting.close_attempt(run, ATTEMPT, NODES) == {"exit_code": 75, "step": 12, "steps_lost": 2}
    assert seconds(run) == {"pending": 7.0, "loading": 5.0, "useful": 12.0, "saving": 1.0, "idle": 13.0}
    assert {(line.attempt, line.nodes, line.pool, line.instance) for line in read_ledger(run)} == {
        (3, 2, "spot", "p4d.24xlarge")
    }
    end = list(run.read_lines("events.jsonl"))[-1]
    assert end == {"time": 130.0, "event": "attempt-ended", "attempt": 3, **end}
    assert (end["exit_code"], end["step"], end["steps_lost"]) == (75, 12, 2)


def test_an_attempt_that_is_in_the_books_is_not_closed_again(run: Storage) -> None:
    train(run)
    first = accounting.close_attempt(run, ATTEMPT, NODES)
    before = contents(run)
    commit_checkpoint(run, 12)  # by a rank that ended later than its launcher was killed
    assert accounting.close_attempt(run, replace(ATTEMPT, ended_at=140.0), NODES) == first
    assert before.items() <= contents(run).items()


@pytest.mark.parametrize(("code", "state"), [(0, "idle"), (75, "idle"), (1, "lost"), (137, "lost"), (78, "lost")])
def test_after_a_crash_the_rest_of_the_time_is_lost(run: Storage, code: int, state: str) -> None:
    train(run)
    accounting.close_attempt(run, replace(ATTEMPT, exit_code=code, earlier_seconds={}), NODES)
    assert seconds(run)[state] == 12.0


def test_a_step_of_an_earlier_attempt_is_not_lost_again(run: Storage) -> None:
    train(run)
    assert accounting.close_attempt(run, replace(ATTEMPT, start_step=12), NODES)["steps_lost"] == 0


def test_the_last_step_may_be_the_only_one(run: Storage) -> None:
    run.write_lines("metrics.jsonl", [{"step": 7}])
    assert accounting.close_attempt(run, ATTEMPT, NODES)["step"] == 7


def test_the_last_step_is_read_from_the_end_of_long_metrics(run: Storage) -> None:
    train(run)
    run.write_lines("metrics.jsonl", [{"step": step, "loss": 0.5} for step in range(1, 9001)])
    run.append("metrics.jsonl", b'{"step": 90')
    assert run.entry("metrics.jsonl").size > 1 << 17
    assert accounting.close_attempt(run, ATTEMPT, NODES)["step"] == 9000


def assert_no_kill_matters(
    folder: Path, prepare: Callable[[Storage], object], action: Callable[[Storage], object]
) -> int:
    """Kill an action before each of its changes, repeat it, and compare the result with that of an unbroken one.

    Returns:
        How many changes the action makes.
    """
    unbroken = open_storage(str(folder / "unbroken"))
    prepare(unbroken)
    action(unbroken)
    kills = 0
    for kills, storage in enumerate(killed_everywhere(prepare, action, str(folder / "killed")), start=1):
        action(storage)
        assert contents(storage) == contents(unbroken), f"killed before change {kills}"
    return kills


def test_an_attempt_whose_launcher_is_killed_is_closed_by_the_next_one_alike(tmp_path: Path) -> None:
    events = [{"time": 100.0, "event": "attempt-started", "ranks": 4}, {"time": 125.0, "event": "stop-asked"}]
    attempt = replace(ATTEMPT, events=events)

    def close(run: Storage) -> None:
        accounting.close_attempt(run, attempt, NODES, LAUNCH_EVENTS)

    assert assert_no_kill_matters(tmp_path, train, close) == 2
    names = [event["event"] for event in open_storage(str(tmp_path / "unbroken")).read_lines(LAUNCH_EVENTS)]
    assert names == ["attempt-started", "stop-asked", "attempt-ended"]


def test_events_are_merged_completely_whenever_the_launcher_is_killed(tmp_path: Path) -> None:
    def prepare(run: Storage) -> None:
        train(run)
        accounting.close_attempt(run, ATTEMPT, NODES, LAUNCH_EVENTS)

    assert assert_no_kill_matters(tmp_path, prepare, lambda run: accounting.merge_events(run, LAUNCH_EVENTS)) == 2


def test_an_event_after_a_torn_line_is_not_lost_with_it(run: Storage) -> None:
    run.write("events.jsonl", b'{"time": 1.0, "event": "loading"}\n{"time": 2.0, "ev')
    accounting.append_events(run, [{"time": 3.0, "event": "hung"}], 0)
    assert [event["time"] for event in accounting.read_lines(run, "events.jsonl")] == [1.0, 3.0]


def test_the_last_sign_is_the_newest_of_events_and_metrics_within_the_attempt(run: Storage, tmp_path: Path) -> None:
    assert accounting.last_sign(run, since=100.0, until=130.0) == 100.0
    train(run)
    metrics = tmp_path / "run/metrics.jsonl"
    for written, newest in ((110.0, 120.0), (125.0, 125.0), (140.0, 120.0)):
        os.utime(metrics, (written, written))
        assert accounting.last_sign(run, since=100.0, until=130.0) == newest
    assert accounting.last_sign(run, since=106.0, until=119.0) == 106.0


def test_the_end_is_the_last_event_within_the_second_that_the_end_was_cut_off_to(run: Storage) -> None:
    train(run)
    assert accounting.last_event_within(run, 119.0, 1.0) == 119.0, "the event at 120 is of the next second"
    assert accounting.last_event_within(run, 119.5, 1.0) == 120.0
    assert accounting.last_event_within(run, 120.0, 1.0) == 120.0
    assert accounting.last_event_within(run, 120.5, 1.0) == 120.5


def test_the_first_start_is_that_of_the_first_attempt(run: Storage) -> None:
    assert accounting.first_started_at(run, default=5.0) == 5.0
    starts = [{"time": 7.0, "event": "loading"}, {"time": 8.0, "event": "attempt-started"}]
    run.write_lines("events.jsonl", [*starts, {"time": 9.0, "event": "attempt-started"}])
    assert accounting.first_started_at(run, default=5.0) == 8.0


def test_an_event_that_is_appended_again_is_there_once(run: Storage) -> None:
    first, second = {"time": 1.0, "event": "hung"}, {"time": 2.0, "event": "hung"}
    accounting.append_events(run, [first], 0)
    accounting.append_events(run, [first, second], 0)
    accounting.append_events(run, [first], 1)
    assert [(event["time"], event["attempt"]) for event in run.read_lines("events.jsonl")] == [(1, 0), (2, 0), (1, 1)]


def test_events_are_merged_in_the_order_of_time(run: Storage) -> None:
    run.write_lines("events.jsonl", [{"time": 1.0, "event": "a"}, {"time": 3.0, "event": "c"}])
    run.write_lines(LAUNCH_EVENTS, [{"time": 2.0, "event": "b"}, {"time": 3.0, "event": "c"}])
    run.append(LAUNCH_EVENTS, b'{"time": 4.0, "ev')
    accounting.merge_events(run, LAUNCH_EVENTS)
    assert [event["event"] for event in run.read_lines("events.jsonl")] == ["a", "b", "c"]
    assert not run.exists(LAUNCH_EVENTS)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([], 137),
        (["loading", "training"], 137),
        (["preempted"], 75),
        (["finished"], 0),
        (["preempted", "loading", "finished"], 0),
        (["finished", "loading", "preempted"], 75),
    ],
)
def test_without_an_exit_code_the_last_event_that_implies_one_decides(
    run: Storage, names: list[str], code: int
) -> None:
    earlier = {"time": 9.0, "event": "finished"}
    run.write_lines("events.jsonl", [earlier, *({"time": 10.0 + at, "event": name} for at, name in enumerate(names))])
    assert accounting.exit_code_from_events(run, since=10.0, default=137) == code


def test_the_next_attempt_comes_after_all_that_were_started_or_paid_for(run: Storage) -> None:
    assert accounting.next_attempt_number(run) == 0
    append_ledger(run, ledger_lines(0, {"pending": 1.0}))
    assert accounting.next_attempt_number(run) == 1
    run.write_lines("events.jsonl", [{"event": "attempt-started", "attempt": 4}, {"event": "hung", "attempt": 9}])
    assert accounting.next_attempt_number(run) == 5
    append_ledger(run, ledger_lines(6, {"pending": 1.0}))
    assert accounting.next_attempt_number(run) == 7


def test_lines_that_are_torn_or_no_objects_are_skipped(run: Storage) -> None:
    assert accounting.read_lines(run, "events.jsonl") == []
    run.write("events.jsonl", b'{"a": 1}\n[2]\n\n{"b"\n{"c": 3}\n{"d": ')
    assert accounting.read_lines(run, "events.jsonl") == [{"a": 1}, {"c": 3}]


def test_every_state_of_an_attempt_has_a_line(run: Storage) -> None:
    accounting.close_attempt(run, ATTEMPT, NODES)
    assert tuple(line.state for line in read_ledger(run)) == STATES
