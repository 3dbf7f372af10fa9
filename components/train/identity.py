"""What makes two trainings the same one: equal settings, seed, data and starting weights."""

from __future__ import annotations

from pathlib import Path

from components.dataset.versions import Dataset
from components.digests import digest, digest_tree
from components.train.config import TrainConfig

# Raised whenever the same settings would train other weights, because the order of the samples, their random numbers or
# the moving average changed. A checkpoint from before belongs to another training then: this one begins anew. 2: the
# decay of the moving average rises.
FORMAT = 2


def training_identity(config: TrainConfig, seed: int, dataset: Dataset, base: Path) -> str:
    """Return the digest that checkpoints carry, so that none is resumed by a training it does not belong to.

    Args:
        config: The settings; those that only say how the run is carried out do not count.
        seed: The run's seed.
        dataset: What is trained on.
        base: Folder of the base model; its UNet is what training starts from.
    """
    return digest([FORMAT, config.identity(), seed, dataset.digest, digest_tree(base, ["unet", "scheduler"])])
