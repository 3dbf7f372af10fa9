"""What this machine can train: its processors and GPUs, its disk, and whether a model to start from can be had."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from components.model.availability import Availability, find_model
from components.model.devices import Gpu, gpus

# What a fine-tuning starts from; the same as in the recipe `finetune`.
BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@dataclass(frozen=True)
class Machine:
    """What a recipe is fitted to.

    Attributes:
        cores: Processors that this process may use.
        gpus: GPUs that torch can use.
        free_bytes: Free space where the current folder is.
        base: Whether the model that a fine-tuning starts from can be had.
    """

    cores: int
    gpus: tuple[Gpu, ...]
    free_bytes: int
    base: Availability


def look_at_machine(folder: Path) -> Machine:
    """Look at this machine.

    Args:
        folder: A folder on the disk that a run would write to.
    """
    return Machine(len(os.sched_getaffinity(0)), gpus(), shutil.disk_usage(folder).free, find_model(BASE))
