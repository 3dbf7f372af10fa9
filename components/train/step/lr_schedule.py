"""The learning rate of each step (pure)."""

from __future__ import annotations

from math import cos, pi

from components.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0.

    It rises linearly over the warm-up, then stays, falls linearly, or falls as half a cosine (Loshchilov & Hutter,
    "SGDR", ICLR 2017, without restarts); the last step is the last that still moves the weights.
    """
    settings = config.optimizer
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    done = (step - settings.warmup_steps) / (config.last_step - settings.warmup_steps)
    if settings.schedule == "linear":
        return settings.learning_rate * (1 - done)
    if settings.schedule == "cosine":
        return settings.learning_rate * (1 + cos(pi * done)) / 2
    return settings.learning_rate
