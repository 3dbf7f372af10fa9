"""Which settings make a training another one, and which contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from components.errors import ConfigError
from components.settings import flatten, override
from components.train.config import TrainConfig

# samples.every needs prompts, and exact_across_world_sizes needs ZeRO stage 0.
CONTINUED = {"run": "before", "step": 100, "checkpoint": "0123", "encoding": "4567"}
BASE = TrainConfig.parse({"zero_stage": 0, "samples": {"prompts": ["a"]}, "continued": CONTINUED})
SETTINGS = flatten(BASE.model_dump(mode="json"))
del SETTINGS["epochs"]  # stands for steps, and is not set beside them
DECISIVE = {
    "steps", "global_batch", "caption_dropout", "precision", "exact_across_world_sizes",
    "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps", "optimizer.betas", "optimizer.epsilon",
    "optimizer.weight_decay", "optimizer.max_grad_norm", "ema.decay", "data.window",
    "continued.run", "continued.step", "continued.checkpoint", "continued.encoding",
}  # fmt: skip
OTHER_VALUES = {
    "precision": "bf16",
    "optimizer.schedule": "cosine",
    "optimizer.betas": [0.5, 0.5],
    "data.on_bad_shard": "skip",
    "data.remote_shards": "range",
    "data.cache": "folder",
    "samples.steps": [7],
    "samples.prompts": ["b"],
    "metrics.trackers": ["tensorboard"],
    "metrics.project": "other",
    "notices.cloud": "aws",
    "continued.run": "other",
    "continued.checkpoint": "89ab",
    "continued.encoding": "cdef",
    "notices.address": "http://127.0.0.1",
}


def another_value(name: str) -> Any:
    value = SETTINGS[name]
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if value is None or isinstance(value, bool):
        return 7 if value is None else not value
    return value + 1 if isinstance(value, int) else value / 2


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_is_another_one_if_a_setting_decides_what_is_computed(name: str) -> None:
    values = override(BASE.model_dump(mode="json"), [f"{name}={another_value(name)}"])
    changed = TrainConfig.parse(values)
    assert changed != BASE
    assert (changed.identity() != BASE.identity()) == (name in DECISIVE)


def test_every_decisive_setting_exists() -> None:
    assert set(SETTINGS) >= DECISIVE


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": {"steps": [9], "prompts": ["a"]}, "steps": 8}, ["samples.steps [9]", "steps (8)"]),
        ({"optimizer": {"warmup_steps": 8}, "steps": 8}, ["optimizer.warmup_steps (8)", "steps (8)"]),
        (
            {"exact_across_world_sizes": True, "zero_stage": 1},
            ["exact_across_world_sizes", "zero_stage 0", "not 1 and fp32"],
        ),
        ({"metrics": {"trackers": ["wandb", "wandb"]}}, ["trackers", "wandb, wandb"]),
        ({"metrics": {"trackers": ["tensorbord"]}}, ["trackers", "'tensorboard' or 'wandb'"]),
        ({"steps": 8, "epochs": 2}, ["steps (8)", "epochs (2)", "null"]),
        ({"steps": None}, ["steps and epochs are both null"]),
        ({"epochs": 0}, ["epochs", "greater than 0"]),
        ({"keep_every": 3}, ["keep_every is now checkpoint.keep_every"]),
        ({"notices": "aws"}, ["notices is now notices.cloud", "'aws'"]),
        ({"trackers": ["wandb"]}, ["trackers is now metrics.trackers"]),
    ],
)
def test_wrong_settings_are_rejected(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse(settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "samples", "global_batch", "steps"),
    [(1, 64, 64, 1), (1, 65, 64, 2), (0.1, 30, 1, 3), (120, 216, 32, 810)],
)
def test_epochs_become_steps_whatever_the_number_of_ranks(
    epochs: float, samples: int, global_batch: int, steps: int
) -> None:
    config = TrainConfig.parse({"epochs": epochs, "global_batch": global_batch})
    trainings = [TrainConfig.parse({**config.model_dump(), "ranks": ranks}).in_steps(samples) for ranks in (1, 5)]
    assert {training.last_step for training in trainings} == {steps}
    assert {training.identity() for training in trainings} == {
        TrainConfig(steps=steps, global_batch=global_batch).identity()
    }


def test_settings_with_epochs_survive_a_file() -> None:
    config = TrainConfig.parse({"epochs": 3.5})
    assert (config.steps, TrainConfig.parse(config.model_dump(mode="json"))) == (None, config)


def test_images_that_were_asked_for_after_the_last_step_are_not_drawn() -> None:
    config = TrainConfig.parse({"epochs": 1, "samples": {"steps": [2, 9], "prompts": ["a"]}, "global_batch": 10})
    assert config.in_steps(50).samples.steps == (2,)


def test_epochs_that_are_shorter_than_the_warm_up_are_an_error() -> None:
    config = TrainConfig.parse({"epochs": 2, "global_batch": 10, "optimizer": {"warmup_steps": 10}})
    with pytest.raises(ConfigError, match=r"train.epochs 2 on 50 samples makes 10 steps.*warmup_steps \(10\)"):
        config.in_steps(50)
