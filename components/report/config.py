"""Settings of the report."""

from __future__ import annotations

from pydantic import Field

from components.settings import Settings


class ReportConfig(Settings):
    """How much the page shows; the numbers in ``report.json`` do not depend on it."""

    moments: int = Field(8, ge=1, le=100, description="training steps whose sample images are shown, at most")
    prompts: int = Field(40, ge=1, le=1000, description="prompts shown with their images, at most")
    images_per_prompt: int = Field(16, ge=1, le=1000, description="images shown of each prompt, at most")
    tile_side: int = Field(256, ge=32, le=2048, description="longest side of an embedded image, in pixels, at most")
    rejections: int = Field(20, ge=0, le=100_000, description="rejected images listed by name, at most")
    attempts: int = Field(30, ge=1, le=1000, description="newest training attempts shown, at most")
    smoothing: float = Field(
        0.01,
        ge=0,
        le=0.5,
        description="half-life of the smoothed loss on either side, as a share of the steps; 0 smooths nothing",
    )
