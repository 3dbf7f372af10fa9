"""Settings of the encoding of images and captions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.settings import Settings


class LatentsConfig(Settings):
    """How images and captions are encoded, and how the results are put into shards."""

    resolution: int = Field(32, ge=8, le=4096, multiple_of=8, description="side of the square images, in pixels")
    vae_dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the image encoder")
    text_dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the text encoder")
    batch_size: int = Field(32, ge=1, le=4096, description="images encoded at once")
    shard_samples: int = Field(512, ge=1, le=100_000, description="most samples per shard; one shard is held in memory")
    caption_cache: int = Field(1024, ge=1, description="text embeddings kept in memory for captions that come again")
    decode_threads: int = Field(4, ge=1, le=256, description="threads that read and decode images ahead of the encoder")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to encode; auto: a GPU if there is one")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads; part of what makes the bytes the same each time")

    @property
    def bucket(self) -> tuple[int, int]:
        """Height and width in pixels of the one bucket that all images are cut to."""
        return self.resolution, self.resolution
