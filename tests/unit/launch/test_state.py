"""What a launcher records is what the next one reads, and it is written before the launcher acts on it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.launch.pods import Gang, GangPod
from pipeline.launch.policy import LaunchState
from pipeline.launch.state import FORMAT, KEY, LaunchEnd, LaunchRecord, OpenAttempt, StateFile, TrainJobRecord

ENDED_POD = GangPod(
    "job-node-0-0", "job-2", "uid-1", 1, 0, 10.0, 11.0, 12.0, 13.0, 75, node_lost=True, stuck_reason="image",
    log_tail="full disk",
)  # fmt: skip
NEW_POD = GangPod("job-node-0-1", "job-2", "uid-2", 1, 1, 10.0)
JOB = TrainJobRecord("job-2", "uid-of-job", "on-demand", 4, 9.5)
FULL = LaunchRecord(
    jobs=2,
    attempts=3,
    state=LaunchState(1.0, "spot", 4, 2.0, 3.0, 50, 6, 5, 4, 3),
    job=JOB,
    job_attempts=1,
    deleted_job="job-1",
    attempt=OpenAttempt(7, JOB, 9.0, 40, Gang({pod.uid: pod for pod in (ENDED_POD, NEW_POD)}), ("uid-0",)),
    end=LaunchEnd("failed", 78, "what was wrong"),
    is_over=True,
    trained_dataset="digest",
)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_every_field_is_read_again(run: Storage) -> None:
    empty = LaunchRecord()
    assert all(getattr(FULL, field.name) != getattr(empty, field.name) for field in fields(LaunchRecord))
    assert StateFile(run).record == empty
    assert (empty.jobs, empty.attempts, empty.job_attempts) == (0, 0, 0)
    StateFile(run).update(**vars(FULL))
    assert StateFile(run).record == FULL
    assert StateFile(run).state == FULL.state


def test_an_empty_record_is_read_again(run: Storage) -> None:
    StateFile(run).update(**vars(FULL))
    StateFile(run).update(**vars(LaunchRecord()))
    assert StateFile(run).record == LaunchRecord()


def test_a_change_is_in_the_storage_at_once_and_what_changes_nothing_is_not_written(run: Storage) -> None:
    state_file = StateFile(run)
    state_file.update(jobs=1)
    assert StateFile(run).record.jobs == 1
    run.delete(KEY)
    state_file.update(jobs=1)
    assert not run.exists(KEY)
    state_file.update(deleted_job="job-1")
    assert StateFile(run).record == LaunchRecord(jobs=1, deleted_job="job-1")


@pytest.mark.parametrize(
    ("values", "name"), [({"jobs": 1}, "format 1"), ({"format": FORMAT, "job": {"name": 3}}, r"job\.name")]
)
def test_a_file_of_another_format_or_a_damaged_one_is_rejected(run: Storage, values: dict[str, Any], name: str) -> None:
    run.write_json(KEY, values)
    with pytest.raises(ConfigError, match=rf"{KEY}.*{name}"):
        StateFile(run)
