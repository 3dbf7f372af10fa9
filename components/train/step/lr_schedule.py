"""The learning rate of each step (pure)."""

from __future__ import annotations

from math import cos, pi

from components.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0.

    It rises linearly over the warm-up, then stays, falls linearly, or falls as half a cosine (Loshchilov & Hutter,
    "SGDR", ICLR 2017, without restarts); the last step is the last that still moves the weights.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    if config.schedule == "cosine":
        return config.learning_rate * (1 + cos(pi * done)) / 2
    return config.learning_rate
