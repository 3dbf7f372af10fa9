"""How often a training sees each image, in words, and when that looks like a mistake (pure)."""

from __future__ import annotations

from components.html.formatting import number
from components.train.config import TrainConfig, steps_of_epochs

# More than that often, a model only learns its images by heart; a few thousand images need far fewer epochs.
_MOST_FROM_SCRATCH, _MOST_WITH_BASE = 2000, 400


def epochs_warning(epochs: float, train: TrainConfig, base: str | None) -> str | None:
    """Return what is unusual about a number of epochs, and what to set instead; None if nothing is.

    Args:
        epochs: How often each image is seen.
        train: The training's settings, in steps.
        base: The model that training starts from; None if it is made from scratch.
    """
    most = _MOST_FROM_SCRATCH if base is None else _MOST_WITH_BASE
    if most < epochs:
        return (
            f"{train.last_step:,} steps of {train.global_batch} images see each image {number(epochs)} times, "
            f"more than a model needs to know it by heart; set train.steps=null train.epochs={most // 4}"
        )
    if epochs < 1:
        samples = round(train.last_step * train.global_batch / epochs)
        return (
            f"{train.last_step:,} steps of {train.global_batch} images see only {epochs:.0%} of the images; "
            f"set train.steps={steps_of_epochs(1, samples, train.global_batch)} or more to see each once"
        )
    return None
