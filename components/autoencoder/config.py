"""Settings of the model that a run starts from: an existing one, or one made from scratch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.model.architecture import Architecture
from components.settings import Settings


class AutoencoderTraining(Settings):
    """How the autoencoder of a model made from scratch is trained."""

    steps: int = Field(450, ge=1, le=10_000_000, description="optimizer steps")
    batch_size: int = Field(64, ge=1, le=65_536, description="images per step")
    learning_rate: float = Field(4e-3, gt=0, le=1, description="AdamW's peak rate, reached after the warm-up")
    warmup_steps: int = Field(
        10, ge=0, le=10_000_000, description="steps over which the rate rises; it falls to 0 linearly"
    )
    weight_decay: float = Field(1e-2, ge=0, le=1, description="AdamW's decoupled weight decay")
    gradient_clip: float = Field(1.0, gt=0, le=1e6, description="largest norm of the whole gradient")
    l1_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the mean absolute error; pixels are in [-1, 1]")
    mse_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the mean squared error; pixels are in [-1, 1]")
    kl_weight: float = Field(
        1e-6, ge=0, le=1e6, description="weight of the Kullback-Leibler divergence, nats per image"
    )
    max_images: int = Field(
        4096, ge=1, le=10_000_000, description="most images to train on, held in memory: 3 × resolution² bytes each"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto: a GPU if there is one")
    # One: on shared cores, the threads of a small model wait for each other, and training takes ten times as long.
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of torch; the bytes are the same each time for the same number"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> AutoencoderTraining:
        if self.l1_weight == 0 and self.mse_weight == 0:
            raise ValueError(".l1_weight and .mse_weight are both 0; at least one must be positive")
        if self.warmup_steps >= self.steps:
            raise ValueError(f".warmup_steps ({self.warmup_steps}) must be below .steps ({self.steps})")
        return self


class ScratchConfig(Settings):
    """A model made from scratch, for a run without a base model."""

    architecture: Architecture = Field(Architecture(), description="sizes of the model's parts")
    training: AutoencoderTraining = Field(AutoencoderTraining(), description="how its autoencoder is trained")


class ModelConfig(Settings):
    """The model that the run starts from."""

    base: str | None = Field(
        None,
        min_length=1,
        description="model to start from: a diffusers folder, s3://…, or owner/name of the Hugging Face hub; "
        "null: make one from scratch",
    )
    revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of a base on the hub; null: its default branch"
    )
    scratch: ScratchConfig = Field(ScratchConfig(), description="the model to make if base is null")

    @model_validator(mode="after")
    def _revision_of_a_base(self) -> ModelConfig:
        if self.revision is not None and self.base is None:
            raise ValueError(f".revision is {self.revision!r}, but .base is null; set .base or remove .revision")
        return self
