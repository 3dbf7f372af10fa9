"""What a training elsewhere writes is reported here once, in whole lines only, whatever happens to the files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from components.errors import StorageError
from components.progress import Progress
from components.storage.base import Entry
from components.storage.local import LocalStorage
from pipeline.launch.run_tail import RunTail


class UnreliableStorage(LocalStorage):
    """A folder that can be unreachable."""

    is_reachable = True

    def entry(self, key: str) -> Entry:
        if not self.is_reachable:
            raise StorageError("the storage is unreachable")
        return super().entry(key)


class TailedRun:
    """A run's folder, its tail, and what that reports."""

    def __init__(self, run: UnreliableStorage) -> None:
        self.run = run
        self._stream = io.StringIO()
        self._tail = RunTail(run, 40, Progress(self._stream))

    def report(self) -> list[dict[str, Any]]:
        """Return what one more call reports."""
        self._stream.seek(0)
        self._stream.truncate()
        self._tail.report()
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> UnreliableStorage:
    return UnreliableStorage(tmp_path)


@pytest.fixture
def tailed(run: UnreliableStorage) -> TailedRun:
    return TailedRun(run)


def test_only_what_comes_from_now_on_is_reported_and_once(run: UnreliableStorage) -> None:
    run.append_lines("events.jsonl", [{"time": 1.0, "event": "before"}])
    tailed = TailedRun(run)
    assert tailed.report() == []
    run.append_lines("events.jsonl", [{"time": 2.0, "event": "checkpoint", "step": 10}])
    assert tailed.report() == [{"event": "checkpoint", "step": 10}]
    assert tailed.report() == []


def test_of_many_steps_the_newest_is_reported(tailed: TailedRun) -> None:
    tailed.run.append_lines("metrics.jsonl", [{"step": step, "loss": 1 / step, "seconds": 9} for step in (1, 2, 4)])
    assert tailed.report() == [{"event": "step", "step": 4, "loss": 0.25, "steps": 40}]
    assert tailed.report() == []


def test_a_line_is_reported_once_it_is_whole(tailed: TailedRun) -> None:
    tailed.run.append("events.jsonl", b'{"event": "a"}\n{"event"')
    assert tailed.report() == [{"event": "a"}]
    assert tailed.report() == []
    tailed.run.append("events.jsonl", b': "b"}\n')
    assert tailed.report() == [{"event": "b"}]


def test_steps_that_a_resumed_training_repeats_are_reported_again(tailed: TailedRun) -> None:
    tailed.run.append_lines("metrics.jsonl", [{"step": step, "loss": 1.0} for step in range(1, 9)])
    tailed.report()
    tailed.run.write_lines("metrics.jsonl", [{"step": 1, "loss": 1.0}])
    assert tailed.report() == []
    tailed.run.append_lines("metrics.jsonl", [{"step": 2, "loss": 0.5}])
    assert tailed.report() == [{"event": "step", "step": 2, "loss": 0.5, "steps": 40}]


def test_of_a_large_file_only_the_end_is_read(tailed: TailedRun) -> None:
    tailed.run.append_lines("events.jsonl", ({"event": "x" * 1000, "number": number} for number in range(1500)))
    numbers = [event["number"] for event in tailed.report()]
    assert 1000 < len(numbers) < 1100
    assert numbers == list(range(1500 - len(numbers), 1500))


def test_an_unreachable_storage_is_read_again_later(tailed: TailedRun) -> None:
    tailed.run.append_lines("events.jsonl", [{"event": "a"}])
    tailed.run.is_reachable = False
    assert tailed.report() == []
    tailed.run.is_reachable = True
    assert tailed.report() == [{"event": "a"}]


def test_lines_that_are_no_objects_are_skipped(tailed: TailedRun) -> None:
    tailed.run.append("events.jsonl", b'[1]\n\n{"torn\n{"event": "a"}\n')
    assert tailed.report() == [{"event": "a"}]
