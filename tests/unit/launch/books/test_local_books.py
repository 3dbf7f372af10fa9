"""The books of a local launcher that is killed: its time is in the ledger, each second once, and never too many."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.accounting.ledger import read_ledger, spent, total
from components.errors import DataError, StorageError
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.launch.books import accounting
from pipeline.launch.books.local_books import BEAT_SECONDS, KEY, LocalBooks
from tests.cluster.operators import commit_checkpoint
from tests.stores.mortal import contents, killed_everywhere

USD_PER_HOUR = 3600.0  # 1 $ per second


@dataclass
class Clocks:
    """Two clocks that a test moves; that on the wall stands elsewhere."""

    now: float = 500.0
    problems: list[str] = field(default_factory=list)

    def books(self, run: Storage) -> LocalBooks:
        return LocalBooks(run, lambda: self.now, lambda: self.now + 1e9, self.problems.append)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def train_for(seconds: float, books: LocalBooks, clocks: Clocks, every: float = 1.0) -> None:
    end = clocks.now + seconds
    while clocks.now < end:
        clocks.now = min(clocks.now + every, end)
        books.beat()


def events(run: Storage, *, after: float = 0.0) -> list[dict[str, Any]]:
    return [event for event in accounting.read_lines(run, "events.jsonl") if event["time"] > after]


def test_an_attempt_that_ends_in_order_is_booked_to_its_last_second(run: Storage, clocks: Clocks) -> None:
    books = clocks.books(run)
    books.open(0, start_step=0, idle_seconds=2.0, usd_per_hour=USD_PER_HOUR, ranks=2)
    train_for(33.25, books, clocks)
    stop = {"time": clocks.now + 1e9, "event": "stop-asked"}
    assert books.close(75, [stop]) == {"exit_code": 75, "step": 0, "steps_lost": 0}
    assert total(read_ledger(run)).seconds == 35.25
    assert [event["event"] for event in events(run)] == ["stop-asked", "attempt-ended"]
    assert not run.exists(KEY)
    assert clocks.books(run).recover() is None


@pytest.mark.parametrize("lived", [0.0, 0.5, 4.9, 5.0, 17.3, 3600.0])
def test_what_a_killed_launcher_left_is_booked_but_for_the_last_beat(
    run: Storage, clocks: Clocks, lived: float
) -> None:
    books = clocks.books(run)
    books.open(0, 0, 0.0, USD_PER_HOUR, 2)
    train_for(lived, books, clocks)
    clocks.now += 10_000  # nothing runs
    assert clocks.books(run).recover() == {"exit_code": 137, "step": 0, "steps_lost": 0}
    assert lived - BEAT_SECONDS < spent(read_ledger(run)) <= lived
    assert [(event["event"], event["attempt"]) for event in events(run)] == [
        ("attempt-started", 0),
        ("attempt-ended", 0),
    ]
    assert accounting.next_attempt_number(run) == 1


def test_the_trainers_last_events_show_how_long_it_ran(run: Storage, clocks: Clocks) -> None:
    books = clocks.books(run)
    books.open(0, 0, 0.0, USD_PER_HOUR, 2)
    began = clocks.now + 1e9
    train_for(12.0, books, clocks)  # the last beat is at 10 s
    run.write_lines(
        "events.jsonl",
        [
            {"time": began + 0.1, "event": "attempt-started", "ranks": 2, "attempt": 0},
            {"time": began + 4.0, "event": "training", "step": 0},
            {"time": began + 11.5, "event": "checkpoint", "step": 9, "stall_seconds": 0.5, "trained_seconds": 6.0},
            {"time": began + 11.75, "event": "preempted", "step": 9},
            {"time": began + 400.0, "event": "loading"},  # somebody trained by hand
        ],
    )
    commit_checkpoint(run, 9)
    assert clocks.books(run).recover() == {"exit_code": 75, "step": 9, "steps_lost": 0}
    seconds = {line.state: line.seconds for line in read_ledger(run) if line.seconds}
    assert seconds == {"loading": 4.0, "useful": 6.0, "saving": 0.5, "idle": 1.25}
    assert [event["event"] for event in events(run)].count("attempt-started") == 1


def end_in_order(run: Storage) -> None:
    clocks = Clocks()
    books = clocks.books(run)
    books.open(3, 0, 1.0, USD_PER_HOUR, 2)
    clocks.now += 42.0
    books.close(75, [{"time": clocks.now, "event": "stop-asked"}])


def leave_open(run: Storage) -> None:
    clocks = Clocks()
    books = clocks.books(run)
    books.open(3, 0, 1.0, USD_PER_HOUR, 2)
    train_for(42.0, books, clocks)


def recover(run: Storage) -> None:
    Clocks(now=9999.0).books(run).recover()


def books_of(run: Storage) -> dict[str, list[Any]]:
    return {key: [json.loads(line) for line in data.splitlines()] for key, data in contents(run).items()}


@pytest.mark.parametrize(("prepare", "action"), [(lambda _run: None, end_in_order), (leave_open, recover)])
def test_each_second_is_booked_once_wherever_the_closing_launcher_is_killed(
    tmp_path: Path, prepare: Callable[[Storage], object], action: Callable[[Storage], object]
) -> None:
    unbroken = open_storage(str(tmp_path / "unbroken"))
    prepare(unbroken)
    action(unbroken)
    expected = books_of(unbroken)
    kills = 0
    for kills, storage in enumerate(killed_everywhere(prepare, action, str(tmp_path / "killed")), start=1):
        for _ in range(3):
            recover(storage)
        if action is recover or kills > 2:  # killed before, nothing says that it ran so long
            assert books_of(storage) == expected, f"killed before change {kills}"
        assert total(read_ledger(storage)).seconds <= total(read_ledger(unbroken)).seconds
    assert kills >= 4


def test_many_lives_add_up(run: Storage, clocks: Clocks) -> None:
    chance, real = random.Random(4), 0.0
    for number in range(40):
        books = clocks.books(run)
        books.recover()
        assert accounting.next_attempt_number(run) == number
        books.open(number, 0, 0.0, USD_PER_HOUR, 2)
        lived = chance.expovariate(1 / 20)
        train_for(lived, books, clocks, every=0.7)
        real += lived
        clocks.now += chance.random() * 100
    clocks.books(run).recover()
    assert real - 40 * (BEAT_SECONDS + 0.7) <= spent(read_ledger(run)) <= real


def test_training_goes_on_while_a_beat_cannot_be_written(
    run: Storage, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = clocks.books(run)
    books.open(0, 0, 0.0, USD_PER_HOUR, 2)

    def fail(_key: str, _data: bytes) -> None:
        raise StorageError("the store is away")

    for outage in (1, 2):
        with monkeypatch.context() as away:
            away.setattr(run, "write", fail)
            train_for(30.0, books, clocks)
        assert clocks.problems == ["the store is away"] * outage, "once for each time that it is away"
        train_for(10.0, books, clocks)
    clocks.books(run).recover()
    assert 74.0 < spent(read_ledger(run)) <= 80.0


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"format": 9}', b'{"format": 1, "number": "x"}'])
def test_a_damaged_record_is_named(run: Storage, clocks: Clocks, text: bytes) -> None:
    run.write(KEY, text)
    with pytest.raises(DataError, match=KEY):
        clocks.books(run).recover()
