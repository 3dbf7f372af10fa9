"""Settings of the encoding of images and captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from components.model.text_reading import MOST_CHUNKS
from components.settings import Settings

Framing = Literal["centre-crop", "random-crop"]


class VariantsConfig(Settings):
    """The variants of each image. Variant 0 is always the plain image, unchanged but for the crop.

    What a variant looks like depends on the image's SHA-256, the variant's number and these settings alone.
    """

    count: int = Field(1, ge=1, le=64, description="variants of each image, the plain one included")
    flip: bool = Field(False, description="mirror variants 1, 3, 5, … left to right")
    crop: float = Field(
        1.0,
        ge=0.1,
        le=1,
        description="smallest crop of variants from 1 on, as a share of the plain sides; each at a random place",
    )
    rotation: float = Field(
        0.0, ge=0, le=45, description="largest rotation of variants from 1 on, in degrees either way"
    )
    brightness: float = Field(0.0, ge=0, le=0.9, description="largest relative change of their brightness")
    contrast: float = Field(0.0, ge=0, le=0.9, description="largest relative change of their contrast")
    saturation: float = Field(0.0, ge=0, le=0.9, description="largest relative change of their saturation")

    @property
    def random(self) -> bool:
        """Whether variants differ in anything but the mirroring."""
        return self.crop < 1 or any((self.rotation, self.brightness, self.contrast, self.saturation))


class DecodeConfig(Settings):
    """How image files are decoded: in processes of their own, each with limits."""

    workers: int = Field(
        2, ge=0, le=256, description="processes that decode images; 0: threads decode, and a crash ends the step"
    )
    threads: int = Field(4, ge=1, le=256, description="threads that read images ahead of the decoding")
    seconds: float = Field(
        60.0, gt=0, le=86_400, description="time limit for one image; if it is exceeded, the process is killed"
    )
    memory_gib: float = Field(4.0, ge=0.25, le=4096, description="memory limit of each decoding process in GiB")


class LatentsConfig(Settings):
    """How images and captions are encoded, and how the results are put into shards."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "decode_workers": "decode.workers",
        "decode_threads": "decode.threads",
        "decode_seconds": "decode.seconds",
        "decode_memory_gib": "decode.memory_gib",
    }

    resolution: int = Field(
        32, ge=8, le=4096, multiple_of=8, description="side of square images in pixels; other shapes have the same area"
    )
    buckets: Literal["square", "aspect"] = Field(
        "square", description="cut every image to a square, or to the nearest of several aspect ratios"
    )
    bucket_step: int = Field(
        64, ge=8, le=512, multiple_of=8, description="aspect buckets have sides that are multiples of this, in pixels"
    )
    max_aspect: float = Field(2.0, ge=1, le=8, description="largest ratio of a bucket's longer to its shorter side")
    framing: Framing = Field(
        "centre-crop", description="take the largest crop of the bucket's shape from the centre, or from a random place"
    )
    variants: VariantsConfig = VariantsConfig()
    vae_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the autoencoder; SDXL's overflows in fp16"
    )
    text_dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="precision of the text encoders")
    clip_skip: int = Field(
        0, ge=0, le=11, description="last layers of the text encoders to skip, counted as diffusers does"
    )
    text_chunks: int | None = Field(
        None,
        ge=1,
        le=MOST_CHUNKS,
        description="chunks that a long caption is read in: of Stable Diffusion's text encoders, 1 reads 75 tokens of "
        "a caption, 2 read 150, 3 read 225 (kohya's max_token_length); null: as many as the base was trained with",
    )
    equal_captions: Literal["error", "keep"] = Field(
        "error",
        description="what happens if different captions become equal, since the text encoder cuts them off: an error, "
        "or train on them as they are",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="images per batch")
    text_batch_size: int = Field(16, ge=1, le=1024, description="captions per batch")
    shard_samples: int = Field(512, ge=1, le=100_000, description="most samples per shard; two shards are in memory")
    caption_cache: int = Field(
        1024, ge=1, le=10_000_000, description="text embeddings kept in memory for captions that repeat"
    )
    decode: DecodeConfig = DecodeConfig()
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to encode; auto: a GPU if there is one")
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of torch; the bytes are the same each time for the same number"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.buckets == "aspect" and self.resolution % self.bucket_step:
            raise ValueError(
                f".bucket_step ({self.bucket_step}) must divide .resolution ({self.resolution}); "
                "64 suits 512 pixels and more, an eighth of the resolution suits smaller models"
            )
        distinct = 2 if self.variants.flip else 1
        if self.variants.count > distinct and not self.variants.random and self.framing != "random-crop":
            raise ValueError(
                f".variants.count is {self.variants.count}, but only {distinct} of them would differ; "
                "set .variants.flip, crop, rotation, brightness, contrast or saturation, or .framing to random-crop"
            )
        return self
