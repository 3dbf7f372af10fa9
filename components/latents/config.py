"""Settings of the encoding of images and captions."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.settings import Settings

Framing = Literal["centre-crop", "random-crop"]


class VariantsConfig(Settings):
    """What is made of each image besides the plain picture, which is always variant 0.

    How a variant looks is a function of the image's SHA-256 and the variant's number alone.
    """

    count: int = Field(1, ge=1, le=64, description="variants of each image, the plain one included")
    flip: bool = Field(False, description="mirror variants 1, 3, 5, … left to right")
    crop: float = Field(
        1.0,
        ge=0.1,
        le=1,
        description="cut variants from 1 on at random places, to between this share and all of the plain crop's sides",
    )
    rotation: float = Field(0.0, ge=0, le=45, description="largest turn of variants from 1 on, either way, in degrees")
    brightness: float = Field(0.0, ge=0, le=0.9, description="largest relative change of their brightness")
    contrast: float = Field(0.0, ge=0, le=0.9, description="largest relative change of their contrast")
    saturation: float = Field(0.0, ge=0, le=0.9, description="largest relative change of their saturation")

    @property
    def drawn(self) -> bool:
        """Whether anything but the mirroring differs from variant to variant."""
        return self.crop < 1 or any((self.rotation, self.brightness, self.contrast, self.saturation))


class LatentsConfig(Settings):
    """How images and captions are encoded, and how the results are put into shards."""

    resolution: int = Field(
        32, ge=8, le=4096, multiple_of=8, description="side of square images in pixels; other shapes have its area"
    )
    buckets: Literal["square", "aspect"] = Field(
        "square", description="cut all images to squares, or each to the nearest of several aspect ratios"
    )
    bucket_step: int = Field(
        64, ge=8, le=512, multiple_of=8, description="aspect buckets have sides that are multiples of this, in pixels"
    )
    max_aspect: float = Field(2.0, ge=1, le=8, description="longest over shortest side of an aspect bucket, at most")
    framing: Framing = Field(
        "centre-crop", description="where the largest part of the bucket's shape is cut out: centre, or anywhere"
    )
    variants: VariantsConfig = VariantsConfig()
    vae_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the image encoder; SDXL's overflows in fp16"
    )
    text_dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the text encoders")
    clip_skip: int = Field(
        0, ge=0, le=11, description="layers of the text encoders left out at the end, as diffusers counts them"
    )
    batch_size: int = Field(32, ge=1, le=4096, description="images encoded at once")
    text_batch_size: int = Field(16, ge=1, le=1024, description="captions encoded at once")
    shard_samples: int = Field(512, ge=1, le=100_000, description="most samples per shard; two shards are in memory")
    caption_cache: int = Field(1024, ge=1, description="text embeddings kept in memory for captions that come again")
    decode_workers: int = Field(
        2, ge=0, le=256, description="processes that decode images; 0: threads do, and one bad image can end the step"
    )
    decode_threads: int = Field(4, ge=1, le=256, description="threads that read images ahead of the decoding")
    decode_seconds: float = Field(60.0, gt=0, description="seconds after which a process is stuck on an image")
    decode_memory_gib: float = Field(4.0, ge=0.25, description="most GiB of memory that a decoding process may take")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to encode; auto: a GPU if there is one")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads; part of what makes the bytes the same each time")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.buckets == "aspect" and self.resolution % self.bucket_step:
            raise ValueError(
                f"bucket_step ({self.bucket_step}) must divide resolution ({self.resolution}); "
                "64 suits 512 pixels and more, an eighth of the resolution smaller models"
            )
        distinct = 2 if self.variants.flip else 1
        if self.variants.count > distinct and not self.variants.drawn and self.framing != "random-crop":
            raise ValueError(
                f"variants.count is {self.variants.count}, but only {distinct} of them would differ; "
                "set variants.flip, crop, rotation, brightness, contrast or saturation, or framing to random-crop"
            )
        return self
