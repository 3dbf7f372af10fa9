"""What the local launcher does before it starts anything."""

from __future__ import annotations

import io

import pytest

from components.errors import ConfigError, LeaseHeld
from components.progress import Progress
from components.storage.lease import TRAINING, acquire, read_holder
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.launch.context import LaunchContext
from pipeline.launch.local_launcher import launch
from pipeline.launch.state import StateFile, TrainJobRecord


@pytest.fixture
def context(tmp_path_factory: pytest.TempPathFactory) -> LaunchContext:
    settings = RunConfig.parse({"name": "x", "ingest": {"source": "x"}})
    workdir = open_storage(str(tmp_path_factory.mktemp("work")))
    return LaunchContext(settings, workdir, "base", "key", "digest", Progress(io.StringIO()))


def test_a_run_that_a_job_on_a_cluster_may_train_is_not_trained_here(context: LaunchContext) -> None:
    StateFile(context.run).update(job=TrainJobRecord("job-1", "uid", "spot", 1, 0.0))
    with pytest.raises(ConfigError, match=r"TrainJob job-1 trains x-\w+ on a cluster.*launch\.json"):
        launch(context)
    assert read_holder(context.run, TRAINING) is None, "the lease was given back"
    assert not context.run.exists("training.json")


def test_a_run_that_is_trained_elsewhere_is_left_alone(context: LaunchContext) -> None:
    acquire(context.run, TRAINING, "the training of x")
    before = {entry.key for entry in context.run.list()}
    with pytest.raises(LeaseHeld, match="the training of x is being run by process"):
        launch(context)
    assert {entry.key for entry in context.run.list()} == before
