"""What a training elsewhere writes is told here once, whole lines only, whatever the file does meanwhile."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pipeline.launch.journal_tail import Tail

from components.errors import StorageError
from components.progress import Progress
from components.storage.base import Entry
from components.storage.local import LocalStorage


class Store(LocalStorage):
    """A folder that can be away."""

    is_away = False

    def entry(self, key: str) -> Entry:
        if self.is_away:
            raise StorageError("the store is away")
        return super().entry(key)


class Listener:
    """A run's folder, a tail on it, and what that tells."""

    def __init__(self, run: Store) -> None:
        self.run = run
        self._stream = io.StringIO()
        self._tail = Tail(run, 40, Progress(self._stream))

    def told(self) -> list[dict[str, Any]]:
        """Return what is told by one more look."""
        self._stream.seek(0)
        self._stream.truncate()
        self._tail.tell()
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def listener(run: Store) -> Listener:
    return Listener(run)


def test_only_what_comes_from_now_on_is_told_and_once(run: Store) -> None:
    run.append_lines("events.jsonl", [{"time": 1.0, "event": "before"}])
    listener = Listener(run)
    assert listener.told() == []
    run.append_lines("events.jsonl", [{"time": 2.0, "event": "checkpoint", "step": 10}])
    assert listener.told() == [{"event": "checkpoint", "step": 10}]
    assert listener.told() == []


def test_of_many_steps_the_newest_is_told(listener: Listener) -> None:
    listener.run.append_lines("metrics.jsonl", [{"step": step, "loss": 1 / step, "seconds": 9} for step in (1, 2, 4)])
    assert listener.told() == [{"event": "step", "step": 4, "loss": 0.25, "steps": 40}]
    assert listener.told() == []


def test_a_line_is_told_once_it_is_whole(listener: Listener) -> None:
    listener.run.append("events.jsonl", b'{"event": "a"}\n{"event"')
    assert listener.told() == [{"event": "a"}]
    assert listener.told() == []
    listener.run.append("events.jsonl", b': "b"}\n')
    assert listener.told() == [{"event": "b"}]


def test_what_a_resumed_training_does_again_is_told_again(listener: Listener) -> None:
    listener.run.append_lines("metrics.jsonl", [{"step": step, "loss": 1.0} for step in range(1, 9)])
    listener.told()
    listener.run.write_lines("metrics.jsonl", [{"step": 1, "loss": 1.0}])
    assert listener.told() == []
    listener.run.append_lines("metrics.jsonl", [{"step": 2, "loss": 0.5}])
    assert listener.told() == [{"event": "step", "step": 2, "loss": 0.5, "steps": 40}]


def test_of_very_much_only_the_end_is_read(listener: Listener) -> None:
    listener.run.append_lines("events.jsonl", ({"event": "x" * 1000, "number": number} for number in range(1500)))
    numbers = [event["number"] for event in listener.told()]
    assert 1000 < len(numbers) < 1100
    assert numbers == list(range(1500 - len(numbers), 1500))


def test_a_store_that_is_away_is_asked_again(listener: Listener) -> None:
    listener.run.append_lines("events.jsonl", [{"event": "a"}])
    listener.run.is_away = True
    assert listener.told() == []
    listener.run.is_away = False
    assert listener.told() == [{"event": "a"}]


def test_what_is_no_object_is_passed_over(listener: Listener) -> None:
    listener.run.append("events.jsonl", b'[1]\n\n{"torn\n{"event": "a"}\n')
    assert listener.told() == [{"event": "a"}]
