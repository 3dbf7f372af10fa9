"""A batch that does not fit is halved for the next start, and for all after it."""

from __future__ import annotations

import pytest
import torch

from components.errors import DarkroomError, OutOfMemory
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.out_of_memory import is_out_of_memory, record_smaller_micro_batch, with_recorded_micro_batch


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Storage:
    return open_storage(f"memory://{request.node.name}")


def test_each_start_that_does_not_fit_halves_the_micro_batch(run: Storage) -> None:
    config = TrainConfig(micro_batch=7, global_batch=64)
    assert with_recorded_micro_batch(config, run) == config
    sizes = []
    for _ in range(2):
        assert isinstance(record_smaller_micro_batch(with_recorded_micro_batch(config, run), run), OutOfMemory)
        sizes.append(with_recorded_micro_batch(config, run).micro_batch)
    assert sizes == [3, 1]
    assert with_recorded_micro_batch(config, run).global_batch == 64
    assert with_recorded_micro_batch(TrainConfig(micro_batch=2), run).micro_batch == 1


def test_the_setting_may_be_made_smaller_than_the_note(run: Storage) -> None:
    record_smaller_micro_batch(TrainConfig(micro_batch=16), run)
    assert with_recorded_micro_batch(TrainConfig(micro_batch=4), run).micro_batch == 4


def test_one_image_that_does_not_fit_ends_the_training(run: Storage) -> None:
    error = record_smaller_micro_batch(TrainConfig(micro_batch=1), run)
    assert not isinstance(error, OutOfMemory), "or it would be started again for ever"
    assert isinstance(error, DarkroomError)
    assert not run.exists("micro_batch.json")


def test_which_errors_mean_that_memory_ended() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("a peer is gone"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
