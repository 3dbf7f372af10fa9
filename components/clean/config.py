"""Settings of the clean step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from components.settings import Settings


class CleanConfig(Settings):
    """Which images are rejected once all have captions, and how much the data report shows."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "kept_pictures": "kept_images",
        "rejected_pictures": "rejected_images",
    }

    max_distance: int | None = Field(
        None,
        ge=0,
        le=16,
        description=(
            "near duplicates: most bits, of 64, in which the perceptual hashes of images that look alike differ; 4 "
            "finds photographs that were saved again or scaled; colours do not count; null rejects none"
        ),
    )
    kept_images: int = Field(40, ge=0, le=1000, description="kept images shown in the data report, at most")
    rejected_images: int = Field(12, ge=0, le=1000, description="images shown for each reason of rejection, at most")
    reasons: int = Field(20, ge=0, le=1000, description="reasons of rejection shown with images, at most")
    words: int = Field(40, ge=0, le=1000, description="most frequent words shown, at most")
    tile_side: int = Field(160, ge=16, le=2048, description="longest side of an image in the report, in pixels")

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings on which it depends which images are rejected, as JSON; the others only shape the report."""
        return {"max_distance": self.max_distance}
