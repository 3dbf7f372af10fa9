"""Settings of the training step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.digests import digest
from components.settings import Settings

# How a run is carried out, not what it computes: these may change between two attempts of one training.
OPERATIONAL = frozenset(
    {
        "ranks",
        "micro_batch",
        "zero_stage",
        "gradient_checkpointing",
        "compile",
        "channels_last",
        "max_skipped_steps",
        "checkpoint_every",
        "keep",
        "keep_every",
        "log_every",
        "prefetch",
        "workers",
        "shard_threads",
        "verify_shards",
        "on_bad_shard",
        "remote_shards",
        "cache",
        "cache_gib",
        "notices",
        "notices_every",
        "notices_address",
        "notices_rebalance",
        "start_seconds",
        "hang_seconds",
        "stop_grace_seconds",
        "crash_grace_seconds",
        "validate_every",
        "validation_samples",
        "validation_seed",
        "sample_every",
        "sample_steps",
        "sample_prompts",
        "sample_denoising_steps",
        "sample_guidance",
        "trackers",
        "tracker_project",
    }
)

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
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="dtype of forward and backward; masters are fp32, and fp16 losses are scaled dynamically"
    )
    window: int = Field(16, ge=1, description="shards of a bucket that are shuffled together")

    ranks: int = Field(1, ge=1, description="processes on this node (on a cluster PET_NPROC_PER_NODE says so)")
    micro_batch: int = Field(32, ge=1, description="images per forward pass and rank, at most")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed shards 1 moments, 2 gradients, 3 weights")
    exact_across_world_sizes: bool = Field(
        False,
        description="make the weights' bytes the same at any number of ranks, slowly (stage 0, fp32)",
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    compile: bool = Field(False, description="compile the UNet with torch.compile")
    channels_last: bool = Field(False, description="lay images out with the channels last, which tensor cores like")
    max_skipped_steps: int = Field(
        50, ge=0, description="steps in a row that are skipped for a gradient that is not finite, before training ends"
    )
    checkpoint_every: int = Field(500, ge=1, description="optimizer steps between two checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of each so-manyth step are kept, too")
    log_every: int = Field(10, ge=1, description="optimizer steps between two lines of progress")
    prefetch: int = Field(4, ge=1, description="optimizer steps of data that are read ahead")
    workers: int = Field(1, ge=1, le=64, description="threads per rank that read samples and draw their noise")
    shard_threads: int = Field(4, ge=1, le=64, description="threads per rank that fetch and check shards ahead")
    verify_shards: bool = Field(True, description="check each shard's digest when a rank first opens it")
    on_bad_shard: Literal["fail", "skip"] = Field(
        "fail", description="a corrupt or missing shard ends training, or its samples count for nothing"
    )
    remote_shards: Literal["cache", "range"] = Field(
        "cache", description="shards of a remote dataset are fetched whole, or only the bytes of samples (not checked)"
    )
    cache: str = Field("", description="folder on this node for remote shards; empty: one in the temporary folder")
    cache_gib: float = Field(50.0, gt=0, description="most GiB that it may take: more than two windows of shards")

    notices: Literal["none", "aws", "gcp", "azure"] = Field(
        "none", description="cloud whose metadata server is asked whether it takes the machine away"
    )
    notices_every: float = Field(2.0, gt=0, le=60, description="seconds between two such questions")
    notices_address: str = Field(
        "http://169.254.169.254", pattern=r"^http://[^/\s]+$", description="address of the metadata server"
    )
    notices_rebalance: bool = Field(False, description="stop also when AWS recommends to rebalance, long before")
    start_seconds: float | None = Field(
        3600.0, gt=0, description="seconds until the first step is done, or the rank counts as hung; null: no limit"
    )
    hang_seconds: float | None = Field(
        900.0,
        gt=0,
        description="seconds from step to step, with checkpoints, samples and compiling, or the rank counts as hung; "
        "null: no limit",
    )
    stop_grace_seconds: float = Field(
        600.0, gt=0, description="seconds to save and end once asked to stop; then the ranks end without"
    )
    crash_grace_seconds: float = Field(
        5.0, ge=0, description="seconds that ranks go on after one has crashed, before they are killed"
    )

    validate_every: int | None = Field(
        500, ge=1, description="optimizer steps between two measurements of the loss on held-out samples; null: never"
    )
    validation_samples: int = Field(256, ge=1, le=100_000, description="held-out samples measured on, at most")
    validation_seed: int = Field(
        0, ge=0, lt=2**63, description="seed of their noise and timesteps; runs to be compared share it"
    )
    sample_every: int | None = Field(
        None, ge=1, description="optimizer steps between two drawings of sample images; null: only after sample_steps"
    )
    sample_steps: tuple[int, ...] = Field((), description="optimizer steps after which sample images are drawn")
    sample_prompts: tuple[str, ...] = Field((), description="prompts of those images")
    sample_denoising_steps: int = Field(20, ge=1, description="denoising steps of those images")
    sample_guidance: float = Field(2.0, ge=0, description="classifier-free guidance scale of those images")

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="what is told the metrics besides the run's own files; credentials come from the environment"
    )
    tracker_project: str = Field(
        "darkroom", min_length=1, max_length=100, description="W&B project and MLflow experiment of the run"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        late = [step for step in self.sample_steps if not 0 < step <= self.steps]
        if late:
            raise ValueError(f"sample_steps {late} lie outside 1..steps ({self.steps})")
        if self.exact_across_world_sizes and (self.zero_stage != 0 or self.precision != "fp32"):
            raise ValueError(
                "exact_across_world_sizes needs zero_stage 0 and precision fp32, "
                f"not zero_stage {self.zero_stage} and {self.precision}"
            )
        if (self.sample_steps or self.sample_every) and not self.sample_prompts:
            asks = "sample_steps asks" if self.sample_steps else "sample_every asks"
            raise ValueError(f"{asks} for images but sample_prompts is empty")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers names one twice: {', '.join(self.trackers)}")
        return self

    def validates_after(self, step: int) -> bool:
        """Tell whether the loss on held-out samples is due after an optimizer step; it is before the first (0), too."""
        return self.validate_every is not None and (step % self.validate_every == 0 or step == self.steps)

    def draws_after(self, step: int) -> bool:
        """Tell whether sample images are due after an optimizer step."""
        return step in self.sample_steps or (
            self.sample_every is not None and step > 0 and step % self.sample_every == 0
        )

    def pauses_after(self, step: int) -> bool:
        """Tell whether anything but the next step is due after an optimizer step."""
        saves = step == self.steps or step % self.checkpoint_every == 0
        return saves or self.validates_after(step) or self.draws_after(step)

    def identity(self) -> str:
        """Return the digest of every setting that what is computed depends on."""
        return digest(self.model_dump(mode="json", exclude=set(OPERATIONAL)))
