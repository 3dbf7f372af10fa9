"""Settings of the training step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.digests import digest
from components.settings import Settings

# How a run is carried out, not what it computes: these may change between two attempts of one training.
OPERATIONAL = frozenset({"ranks", "micro_batch", "zero_stage", "checkpoint_every", "keep", "log_every", "prefetch"})

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Settings):
    """What the trainer computes and how it goes about it."""

    steps: int = Field(1000, ge=1, description="optimizer steps in all")
    global_batch: int = Field(64, ge=1, description="images per optimizer step, over all ranks")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="decay after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0 to its peak")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global L2 norm")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained with the empty prompt")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the moving average of the weights, per step")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="dtype of forward and backward; masters are fp32")
    window: int = Field(16, ge=1, description="shards that are shuffled together, so at most this many are open")

    ranks: int = Field(1, ge=1, description="processes on this node (on a cluster PET_NPROC_PER_NODE says so)")
    micro_batch: int = Field(32, ge=1, description="images per forward pass and rank, at most")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed shards 1 moments, 2 gradients, 3 weights")
    checkpoint_every: int = Field(500, ge=1, description="optimizer steps between two checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    log_every: int = Field(10, ge=1, description="optimizer steps between two lines of progress")
    prefetch: int = Field(4, ge=1, description="optimizer steps of data that are read ahead")

    sample_steps: tuple[int, ...] = Field((), description="optimizer steps after which sample images are drawn")
    sample_prompts: tuple[str, ...] = Field((), description="prompts of those images")
    sample_denoising_steps: int = Field(20, ge=1, description="denoising steps of those images")
    sample_guidance: float = Field(2.0, ge=0, description="classifier-free guidance scale of those images")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        late = [step for step in self.sample_steps if not 0 < step <= self.steps]
        if late:
            raise ValueError(f"sample_steps {late} lie outside 1..steps ({self.steps})")
        if self.sample_steps and not self.sample_prompts:
            raise ValueError("sample_steps asks for images but sample_prompts is empty")
        return self

    def identity(self) -> str:
        """Return the digest of every setting that what is computed depends on."""
        return digest(self.model_dump(mode="json", exclude=set(OPERATIONAL)))
