"""Settings of the ingest step."""

from __future__ import annotations

from pydantic import Field, field_validator

from components.images import ImageLimits
from components.settings import Settings


class IngestConfig(Settings):
    """Where the images are, and which of the files there are taken for images."""

    source: str = Field(
        min_length=1, description="folder of images, read recursively: a local path or s3://bucket/prefix"
    )
    groups: int = Field(1, ge=1, le=1000, description="partition groups that are captioned and encoded side by side")
    extensions: tuple[str, ...] = Field(
        (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
        min_length=1,
        description="endings of file names taken for images, lower-case with the dot; capitals in names do not matter",
    )
    limits: ImageLimits = Field(ImageLimits(), description="which sizes of image are taken")
    readers: int = Field(8, ge=1, le=256, description="files read at the same time")

    @field_validator("extensions")
    @classmethod
    def _lower_with_dot(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        for extension in extensions:
            if not extension.startswith(".") or extension != extension.lower():
                raise ValueError(f"{extension!r} must begin with a dot and be lower-case, such as '.jpg'")
        return extensions
