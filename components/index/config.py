"""Settings of the dataset that training reads."""

from __future__ import annotations

from pydantic import Field

from components.settings import Settings


class IndexConfig(Settings):
    """Which part of the dataset is held out from training."""

    held_out: float = Field(
        0.05, ge=0, lt=1, description="share of the images that are never trained on, for validation and evaluation"
    )
