"""The books of a training: every second of an attempt once and in the right state, whatever kills the launcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.accounting.ledger import STATES, append_ledger, ledger_lines, read_ledger
from components.errors import ConfigError, DarkroomError, DataError
from components.model import checkpoints
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from pipeline.launch import accounting
from pipeline.launch.accounting import Life, Machines
from pipeline.launch.config import LaunchConfig
from pipeline.launch.policy import Standing

JOURNAL = "launch-events.jsonl"
SPOT = Machines(2, "spot", "p4d.24xlarge", 9.5)
# An attempt of 30 s behind 7 s of waiting: it loads for 5 s, trains and saves step 10, and is stopped in step 12.
LIFE = Life(3, began=100.0, ended=130.0, code=75, first=5, before={"pending": 7.0, "idle": 1.0})
EVENTS: list[dict[str, Any]] = [
    {"time": 50.0, "event": "validation", "seconds": 9.0},
    {"time": 105.0, "event": "training", "step": 5},
    {"time": 120.0, "event": "checkpoint", "step": 10, "stall_seconds": 1.0, "trained_seconds": 12.0},
    {"time": 131.0, "event": "validation", "seconds": 9.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def save(run: Storage, step: int) -> None:
    """Commit a checkpoint of one number."""
    piece = checkpoints.Piece("a", 0, {kind: np.zeros(1, np.float32) for kind in checkpoints.KINDS})
    what = checkpoints.Save(step, {}, 1, "training", {"a": (1,)}, "gang")
    checkpoints.write_part(run, what, 0, [piece])
    assert checkpoints.commit(run, what)


def train(run: Storage) -> None:
    """Leave what the trainer of `LIFE` leaves."""
    run.write_lines("events.jsonl", EVENTS)
    run.write_lines("metrics.jsonl", [{"step": step} for step in range(1, 13)])
    save(run, 10)


def seconds(run: Storage) -> dict[str, float]:
    """Return the seconds of each state in the ledger that are not 0."""
    return {line.state: line.seconds for line in read_ledger(run) if line.seconds}


def test_an_attempt_is_closed_with_its_own_events_alone(run: Storage) -> None:
    train(run)
    assert accounting.close(run, LIFE, SPOT) == {"exit_code": 75, "step": 12, "steps_lost": 2}
    assert seconds(run) == {"pending": 7.0, "loading": 5.0, "useful": 12.0, "saving": 1.0, "idle": 13.0}
    assert {(line.attempt, line.nodes, line.pool, line.instance) for line in read_ledger(run)} == {
        (3, 2, "spot", "p4d.24xlarge")
    }
    ended = list(run.read_lines("events.jsonl"))[-1]
    assert ended == {"time": 130.0, "event": "attempt-ended", "attempt": 3, **ended}
    assert (ended["exit_code"], ended["step"], ended["steps_lost"]) == (75, 12, 2)


def test_an_attempt_that_is_in_the_books_is_not_closed_again(run: Storage) -> None:
    train(run)
    first = accounting.close(run, LIFE, SPOT)
    before = contents(run)
    save(run, 12)  # by a rank that was slower to end than its launcher to be killed
    assert accounting.close(run, replace(LIFE, ended=140.0), SPOT) == first
    assert before.items() <= contents(run).items()


@pytest.mark.parametrize(("code", "state"), [(0, "idle"), (75, "idle"), (1, "lost"), (137, "lost"), (78, "lost")])
def test_after_a_crash_the_rest_of_the_time_is_lost(run: Storage, code: int, state: str) -> None:
    train(run)
    accounting.close(run, replace(LIFE, code=code, before={}), SPOT)
    assert seconds(run)[state] == 12.0


def test_a_step_of_an_attempt_before_is_not_lost_again(run: Storage) -> None:
    train(run)
    assert accounting.close(run, replace(LIFE, first=12), SPOT)["steps_lost"] == 0


def test_the_last_step_is_read_from_the_end_of_long_metrics(run: Storage) -> None:
    train(run)
    run.write_lines("metrics.jsonl", [{"step": step, "loss": 0.5} for step in range(1, 9001)])
    run.append("metrics.jsonl", b'{"step": 90')
    assert run.entry("metrics.jsonl").size > 1 << 17
    assert accounting.close(run, LIFE, SPOT)["step"] == 9000


class Killed(BaseException):
    """Ends a launcher as SIGKILL would."""


class Mortal(LocalStorage):
    """A folder whose writer dies before its n-th change."""

    left = 0

    def write(self, key: str, data: bytes) -> None:
        self._count()
        super().write(key, data)

    def append(self, key: str, data: bytes) -> None:
        self._count()
        super().append(key, data)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)

    def delete_tree(self, prefix: str) -> None:
        self._count()
        super().delete_tree(prefix)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def killed_everywhere(folder: Path, prepare: Callable[[Storage], None], do: Callable[[Storage], object]) -> int:
    """Do something, killed before each of its changes and then done again, and compare what there is in the end.

    Returns:
        How many changes it makes.
    """
    whole = open_storage(str(folder / "whole"))
    prepare(whole)
    do(whole)
    for moment in range(100):
        mortal = Mortal(folder / str(moment))
        mortal.left = 1000
        prepare(mortal)
        mortal.left = moment
        try:
            do(mortal)
        except Killed:
            mortal.left = 1000
            do(mortal)
            assert contents(mortal) == contents(whole), f"killed before change {moment}"
        else:
            assert contents(mortal) == contents(whole)
            return moment
    raise AssertionError("it has no end")


def contents(run: Storage) -> dict[str, bytes]:
    return {entry.key: run.read(entry.key) for entry in run.list()}


def test_an_attempt_whose_launcher_is_killed_is_closed_by_the_next_as_if_nothing_had_been(tmp_path: Path) -> None:
    told = [{"time": 100.0, "event": "attempt-started", "ranks": 4}, {"time": 125.0, "event": "stop-asked"}]
    life = replace(LIFE, told=told)
    assert killed_everywhere(tmp_path, train, lambda run: accounting.close(run, life, SPOT, JOURNAL)) == 2
    journal = open_storage(str(tmp_path / "whole")).read_lines(JOURNAL)
    assert [event["event"] for event in journal] == ["attempt-started", "stop-asked", "attempt-ended"]


def test_a_journal_is_moved_whole_wherever_its_launcher_is_killed(tmp_path: Path) -> None:
    def prepare(run: Storage) -> None:
        train(run)
        accounting.close(run, LIFE, SPOT, JOURNAL)

    assert killed_everywhere(tmp_path, prepare, lambda run: accounting.merge(run, JOURNAL)) == 2


def test_records_begin_anew_wherever_the_launcher_is_killed(tmp_path: Path) -> None:
    def prepare(run: Storage) -> None:
        accounting.begin(run, "old")
        train(run)
        run.write("samples/one.png", b"")
        accounting.close(run, LIFE, SPOT)

    assert killed_everywhere(tmp_path, prepare, lambda run: accounting.begin(run, "new")) >= 3


def test_the_records_of_another_dataset_are_forgotten_and_its_own_stay(run: Storage) -> None:
    accounting.begin(run, "one")
    assert accounting.is_same(run, "one")
    train(run)
    run.write("samples/one.png", b"")
    accounting.close(run, LIFE, SPOT)
    before = contents(run)
    accounting.begin(run, "one")
    assert contents(run) == before
    accounting.begin(run, "two")
    gone = {"events.jsonl", "metrics.jsonl", "ledger.jsonl", "samples/one.png"}
    assert before.keys() - contents(run).keys() == gone
    assert not accounting.is_same(run, "one")


def test_what_is_recorded_once_more_is_there_once(run: Storage) -> None:
    first, second = {"time": 1.0, "event": "hung"}, {"time": 2.0, "event": "hung"}
    accounting.record(run, [first], 0)
    accounting.record(run, [first, second], 0)
    accounting.record(run, [first], 1)
    assert [(event["time"], event["attempt"]) for event in run.read_lines("events.jsonl")] == [(1, 0), (2, 0), (1, 1)]


def test_a_journal_is_merged_in_the_order_of_time(run: Storage) -> None:
    run.write_lines("events.jsonl", [{"time": 1.0, "event": "a"}, {"time": 3.0, "event": "c"}])
    run.write_lines(JOURNAL, [{"time": 2.0, "event": "b"}, {"time": 3.0, "event": "c"}])
    run.append(JOURNAL, b'{"time": 4.0, "ev')
    accounting.merge(run, JOURNAL)
    assert [event["event"] for event in run.read_lines("events.jsonl")] == ["a", "b", "c"]
    assert not run.exists(JOURNAL)


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
def test_an_end_that_nobody_saw_is_told_by_the_last_event_that_speaks_for_it(
    run: Storage, names: list[str], code: int
) -> None:
    before = {"time": 9.0, "event": "finished"}
    run.write_lines("events.jsonl", [before, *({"time": 10.0 + at, "event": name} for at, name in enumerate(names))])
    assert accounting.told_end(run, since=10.0, unknown=137) == code


def test_the_next_attempt_is_behind_all_that_were_started_or_paid_for(run: Storage) -> None:
    assert accounting.next_attempt(run) == 0
    append_ledger(run, ledger_lines(0, {"pending": 1.0}))
    assert accounting.next_attempt(run) == 1
    run.write_lines("events.jsonl", [{"event": "attempt-started", "attempt": 4}, {"event": "hung", "attempt": 9}])
    assert accounting.next_attempt(run) == 5
    append_ledger(run, ledger_lines(6, {"pending": 1.0}))
    assert accounting.next_attempt(run) == 7


def test_lines_that_are_torn_or_no_objects_are_passed_over(run: Storage) -> None:
    assert accounting.lines(run, "events.jsonl") == []
    run.write("events.jsonl", b'{"a": 1}\n[2]\n\n{"b"\n{"c": 3}\n{"d": ')
    assert accounting.lines(run, "events.jsonl") == [{"a": 1}, {"c": 3}]


def test_what_is_evaluated_is_the_newest_checkpoint_and_without_one_the_limit_is_named(run: Storage) -> None:
    launch = LaunchConfig.parse({"budget_usd": 12.5, "deadline_hours": 3})
    for why, parts in {
        "budget": ("12.5", "launch.budget_usd", "train.checkpoint.every"),
        "deadline": ("3.0", "launch.deadline_hours", "train.checkpoint.every"),
    }.items():
        with pytest.raises(DarkroomError) as refused:
            accounting.stopped_at(run, why, launch)
        assert all(part in str(refused.value) for part in parts)
    save(run, 1)
    assert accounting.stopped_at(run, "budget", launch) == 1


@pytest.mark.parametrize(
    ("fruitless", "parts"),
    [
        (
            2,
            (
                "exit code 9",
                "2 preemptions",
                "3 crashes",
                "launch.restarts.max_preemptions",
                "launch.restarts.max_crashes",
                "7",
            ),
        ),
        (3, ("exit code 9", "step 40", "launch.restarts.max_without_progress", "train.checkpoint.every")),
    ],
)
def test_who_gives_up_says_which_limit_it_was_and_the_last_words(fruitless: int, parts: tuple[str, ...]) -> None:
    standing = Standing(0.0, "spot", 1, 0.0, step=40, preemptions=2, crashes=3, fruitless=fruitless)
    launch = LaunchConfig.parse({"restarts": {"max_without_progress": 2, "max_crashes": 7}})
    said = str(accounting.given_up(standing, 9, launch, "the disk is full\nreally"))
    assert said.endswith("\nthe disk is full\nreally")
    assert all(part in said for part in parts)


@pytest.mark.parametrize(("code", "error"), [(78, ConfigError), (65, DataError), (1, DarkroomError)])
def test_a_refusal_is_the_error_that_its_exit_code_stands_for(code: int, error: type[DarkroomError]) -> None:
    assert type(accounting.refusal(code, "said")) is error


def test_every_state_of_an_attempt_has_a_line(run: Storage) -> None:
    accounting.close(run, LIFE, SPOT)
    assert tuple(line.state for line in read_ledger(run)) == STATES
