"""Settings of the ingest step."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from components.image.decoding import ImageLimits
from components.settings import Settings


class IngestConfig(Settings):
    """Where the images are, which of the files there are taken for images, and how they are divided."""

    source: str = Field(
        min_length=1, description="folder of images, read recursively: a local path or s3://bucket/prefix"
    )
    layout: Literal["auto", "folder", "imagefolder", "webdataset"] = Field(
        "auto",
        description=(
            "how the images lie there: files with captions beside them (folder), the same with metadata.jsonl or .csv "
            "(imagefolder), members of .tar files (webdataset), or the one that it looks like (auto)"
        ),
    )
    lanes: int = Field(1, ge=1, le=50, description="partition groups that are captioned and encoded side by side")
    group_images: int = Field(
        20_000, ge=1, le=1_000_000, description="images per partition group, at most about so many; bounds memory"
    )
    extensions: tuple[str, ...] = Field(
        (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
        min_length=1,
        description="endings of file names taken for images, lower-case with the dot; capitals in names do not matter",
    )
    limits: ImageLimits = Field(ImageLimits(), description="which sizes of image are taken")
    allowed_licenses: tuple[str, ...] = Field(
        (),
        description="licences of the images that are taken, as the metadata write them, such as CC-BY-4.0; [] for all",
    )
    unknown_license: Literal["keep", "reject"] | None = Field(
        None,
        description=(
            "what becomes of an image whose licence nobody tells; null: rejected where allowed_licenses are named, "
            "kept where they are not"
        ),
    )
    readers: int = Field(8, ge=1, le=256, description="files read at the same time")

    @field_validator("extensions")
    @classmethod
    def _lower_with_dot(cls, extensions: tuple[str, ...]) -> tuple[str, ...]:
        for extension in extensions:
            if not extension.startswith(".") or extension != extension.lower():
                raise ValueError(f"{extension!r} must begin with a dot and be lower-case, such as '.jpg'")
        return extensions

    @field_validator("allowed_licenses", mode="before")
    @classmethod
    def _numbers_are_names(cls, licenses: Any) -> Any:
        """Take a number for a name: COCO and others number their licences."""
        if not isinstance(licenses, list | tuple):
            return licenses
        return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in licenses]

    @property
    def keeps_unknown(self) -> bool:
        """Whether images of unknown licence are taken."""
        return not self.allowed_licenses if self.unknown_license is None else self.unknown_license == "keep"
