"""What makes a training another one, and what only says how it is carried out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from components.dataset.versions import Dataset, Shard, make_dataset
from components.train.config import TrainConfig
from components.train.identity import training_identity


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for part in ("unet", "scheduler", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    return tmp_path


def dataset(digest: str = "ab") -> Dataset:
    return make_dataset("key", {}, [Shard("shards/16x16/0", (16, 16), 9, 1, digest * 32)], rejected=0)


def test_settings_seed_data_and_base_model_make_a_training(base: Path) -> None:
    changes: list[Callable[[], str]] = [
        lambda: training_identity(TrainConfig.parse({"optimizer": {"learning_rate": 1e-3}}), 1, dataset(), base),
        lambda: training_identity(TrainConfig(), 2, dataset(), base),
        lambda: training_identity(TrainConfig(), 1, dataset("cd"), base),
    ]
    carried_out = TrainConfig.parse({"ranks": 4, "zero_stage": 3, "checkpoint": {"keep": 7}})
    plain = training_identity(TrainConfig(), 1, dataset(), base)
    assert training_identity(carried_out, 1, dataset(), base) == plain
    found = [change() for change in changes]
    for part in ("unet", "scheduler"):
        (base / part / "config.json").write_text(part)
        found.append(training_identity(TrainConfig(), 1, dataset(), base))
    assert len({plain, *found}) == 6
    (base / "vae/config.json").write_text("another")
    assert training_identity(TrainConfig(), 1, dataset(), base) == found[-1], "its latents are the dataset's"
