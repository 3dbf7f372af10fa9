"""Lines arrive in order and once, on stores that append, stores that are slow, and stores that fail for a while."""

from __future__ import annotations

import threading
from pathlib import Path

from components.errors import StorageError
from components.storage.open import open_storage
from components.train.metrics.journal import Journal
from tests.stores.memory import MemoryStorage


class Unsteady(MemoryStorage):
    """A store that fails on demand, and waits until it may go on."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.fails = False
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.writes = 0

    def write(self, key: str, data: bytes) -> None:
        self.reached.set()
        self.open.wait()
        if self.fails:
            raise StorageError("the store is away")
        self.writes += 1
        super().write(key, data)


def numbers(journal: Journal, key: str = "a") -> list[int]:
    return [line["n"] for line in journal.lines(key)]


def test_in_a_folder_lines_are_there_once_flushed(tmp_path: Path) -> None:
    journal = Journal(open_storage(str(tmp_path)), failed=print)
    journal.add("a", {"n": 1})
    assert numbers(journal) == []
    journal.flush()
    journal.add("a", {"n": 2})
    journal.add("b", {"n": 3})
    journal.flush()
    assert (numbers(journal), numbers(journal, "b")) == ([1, 2], [3])


def test_a_slow_store_holds_nobody_up() -> None:
    store = Unsteady("journal-slow")
    store.open.clear()
    journal = Journal(store, failed=print)
    for n in range(50):
        journal.add("a", {"n": n})
        journal.flush()  # returns although nothing can be written
    store.open.set()
    journal.flush(wait=True)
    assert numbers(journal) == list(range(50))
    assert store.writes < 10, "what has gathered is written together"


def test_a_store_that_fails_is_told_of_once_and_tried_again() -> None:
    problems: list[str] = []
    store = Unsteady("journal-failing")
    store.fails = True
    journal = Journal(store, problems.append)
    for n in range(3):
        journal.add("a", {"n": n})
        journal.flush(wait=True)
    assert problems == ["the store is away"]
    store.fails = False
    journal.add("a", {"n": 3})
    journal.flush(wait=True)
    assert numbers(journal) == [0, 1, 2, 3]
    store.fails = True
    journal.add("a", {"n": 4})
    journal.flush(wait=True)
    assert len(problems) == 2


def test_lines_that_came_while_a_write_failed_stand_behind_those_that_it_lost() -> None:
    store = Unsteady("journal-order")
    store.open.clear()
    journal = Journal(store, failed=lambda problem: None)
    journal.add("a", {"n": 0})
    journal.flush()
    assert store.reached.wait(30), "the first line is on its way"
    journal.add("a", {"n": 1})
    store.fails = True
    store.open.set()
    journal.flush(wait=True)
    store.fails = False
    journal.flush(wait=True)
    assert numbers(journal) == [0, 1]


def test_rewinding_takes_off_later_steps_and_torn_lines(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write("a", b'{"step": 1}\n{"step": 2}\n{"step": 3}\n[]\n{"step": 4, "lo')
    journal = Journal(run, failed=print)
    assert journal.rewind("a", 2) == 1
    assert list(run.read_lines("a")) == [{"step": 1}, {"step": 2}]
    assert journal.rewind("a", 0) == 2
    assert journal.rewind("absent", 0) == 0
    assert not run.exists("absent")


def test_a_line_without_its_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write("a", b'{"n": 1}\n{"n": 2}')
    journal = Journal(run, failed=print)
    assert journal.rewind("a", None) == 0
    journal.add("a", {"n": 3})
    journal.flush()
    assert numbers(journal) == [1, 2, 3]
