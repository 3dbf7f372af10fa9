"""Settings of the caption step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.settings import Settings

# Captioners that have a name of their own here.
SHORT_NAMES = {"blip": "Salesforce/blip-image-captioning-base"}


class CaptionConfig(Settings):
    """Who writes the captions that are not there, and what a caption may be."""

    model: str | None = Field(
        None,
        min_length=1,
        description=(
            "captioner for images without a usable caption file: blip, a folder, workdir:…, s3://… or owner/name"
            "[@revision] of the Hugging Face hub; null for none"
        ),
    )
    prompt: str = Field(
        "", max_length=500, description="text that the captioner continues, such as 'a photo of'; empty for none"
    )
    batch_size: int = Field(8, ge=1, le=1024, description="images that the captioner reads at once")
    max_new_tokens: int = Field(40, ge=1, le=256, description="longest caption that the captioner writes, in tokens")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the captioner runs")
    missing: Literal["reject", "empty"] = Field(
        "reject", description="what becomes of an image without a usable caption: left out, or kept with an empty one"
    )
    max_characters: int = Field(2000, ge=1, le=100_000, description="longest caption that is taken, in characters")
    readers: int = Field(8, ge=1, le=256, description="files read and decoded at the same time")

    @property
    def captioner(self) -> str | None:
        """The captioner's full name, or None where there is none."""
        return None if self.model is None else SHORT_NAMES.get(self.model, self.model)
