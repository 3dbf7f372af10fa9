from __future__ import annotations

import pytest

from components.train.config import TrainConfig
from components.train.step.lr_schedule import learning_rate


def rates(**settings: object) -> list[float]:
    config = TrainConfig.parse({"steps": 10, "optimizer": {"learning_rate": 1.0, **settings}})
    return [learning_rate(step, config) for step in range(10)]


def test_constant() -> None:
    assert rates() == [1.0] * 10


def test_warmup_rises_evenly_to_the_peak() -> None:
    assert rates(warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_linear_falls_evenly_and_never_reaches_zero() -> None:
    assert rates(schedule="linear", warmup_steps=2)[2:] == pytest.approx([1 - i / 8 for i in range(8)])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    falling = rates(schedule="cosine")
    assert falling[0] == 1.0
    assert falling[5] == pytest.approx(0.5)
    assert falling == sorted(falling, reverse=True)
