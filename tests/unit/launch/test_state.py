"""What a launcher remembers is what the next one reads, and it is written before anybody acts on it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.launch.pods import Gang, Pod
from pipeline.launch.policy import Standing
from pipeline.launch.state import KEY, Ending, Job, Memory, Notebook, Open

POD = Pod("job-node-0-0", "job-2", "uid-1", 1, 0, 10.0, 11.0, 12.0, 13.0, 75, taken=True, stuck="image", said="words")
JOB = Job("job-2", "uid-of-job", "on-demand", 4, 9.5)
FULL = Memory(
    number=2,
    attempts=3,
    standing=Standing(1.0, "spot", 4, 2.0, 3.0, 50, 6, 5, 4, 3),
    job=JOB,
    judged=1,
    left="job-1",
    attempt=Open(7, JOB, 9.0, 40, Gang({POD.uid: POD}), ("uid-0",)),
    ending=Ending("failed", 78, "what was wrong"),
    finished=True,
    done="digest",
)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_all_that_is_remembered_is_read_again(run: Storage) -> None:
    nothing = Memory()
    assert all(getattr(FULL, field.name) != getattr(nothing, field.name) for field in fields(Memory))
    assert Memory.read(run) == nothing
    Notebook(run).note(**vars(FULL))
    assert Memory.read(run) == Notebook(run).memory == FULL
    assert Notebook(run).standing == FULL.standing


def test_an_empty_memory_is_read_again(run: Storage) -> None:
    Notebook(run).note(**vars(FULL))
    Notebook(run).note(**vars(Memory()))
    assert Memory.read(run) == Memory()


def test_what_is_noted_is_in_the_store_at_once_and_only_where_it_changes_something(run: Storage) -> None:
    notebook = Notebook(run)
    notebook.note(number=1)
    assert Memory.read(run).number == 1
    run.delete(KEY)
    notebook.note(number=1)
    assert not run.exists(KEY)
    notebook.note(left="job-1")
    assert Memory.read(run) == Memory(number=1, left="job-1")
