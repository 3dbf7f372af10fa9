"""Settings of the publish step."""

from __future__ import annotations

from pydantic import Field

from components.settings import Settings


class PublishConfig(Settings):
    """What the model card says besides what Darkroom knows."""

    description: str = Field("", max_length=10_000, description="what the model is for, as plain text; for its card")
    license: str | None = Field(
        None, min_length=1, max_length=200, description="licence of the weights, as the Hugging Face hub names it"
    )
