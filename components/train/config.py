"""Settings of the training step.

What is marked `Operational` says how a run is carried out: it may change between two attempts. All else decides what is
computed, and is part of the training's identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from components.digests import digest
from components.errors import ConfigError
from components.settings import Operational, Settings, shown

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Settings):
    """AdamW, its learning rate, and how gradients are clipped."""

    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="decay after the warm-up")
    warmup_steps: int = Field(
        0, ge=0, le=1_000_000_000, description="steps over which the learning rate rises from 0 to its peak"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments")
    epsilon: float = Field(1e-8, gt=0, le=1, description="AdamW's epsilon")
    weight_decay: float = Field(0.01, ge=0, le=100, description="AdamW's decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="gradients are scaled down to this global L2 norm")


class ContinuedConfig(Settings):
    """The checkpoint of another run that training goes on from; ``darkroom run --continue`` fills this in."""

    run: str = Field("", description="run whose weights, moments and average training goes on from; empty: base model")
    step: int = Field(
        0, ge=0, le=1_000_000_000, description="optimizer step of its checkpoint; the next step is that number plus one"
    )
    checkpoint: str = Field("", description="digest of that checkpoint")
    encoding: str = Field("", description="encoding of the data that it was trained on")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if bool(self.run) != bool(self.step and self.checkpoint and self.encoding):
            raise ValueError(".run, .step, .checkpoint and .encoding belong together: give all of them, or none")
        return self


class EmaConfig(Settings):
    """The moving average of the weights, which is what is published."""

    decay: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights per step; step n uses min(decay, (1+n)/(10+n))",
    )


class PerformanceConfig(Settings):
    """Memory against time: the same computation, laid out in other ways."""

    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    compile: bool = Field(False, description="compile the UNet with torch.compile")
    channels_last: bool = Field(False, description="lay images out with the channels last, which tensor cores like")


class DataConfig(Settings):
    """How samples are shuffled, read and checked."""

    window: int = Field(16, ge=1, le=65_536, description="shards of a bucket that are shuffled together")
    prefetch: Operational[int] = Field(4, ge=1, le=1024, description="optimizer steps of data that are read ahead")
    workers: Operational[int] = Field(
        1, ge=1, le=64, description="threads per rank that read samples and draw their noise"
    )
    shard_threads: Operational[int] = Field(
        4, ge=1, le=64, description="threads per rank that fetch and check shards ahead"
    )
    verify_shards: Operational[bool] = Field(True, description="check each shard's digest when a rank first opens it")
    on_bad_shard: Operational[Literal["fail", "skip"]] = Field(
        "fail", description="if a shard is corrupt or missing: end training, or train without its samples"
    )
    remote_shards: Operational[Literal["cache", "range"]] = Field(
        "cache", description="shards of a remote dataset are fetched whole, or only the bytes of samples (not checked)"
    )
    cache: Operational[str] = Field(
        "", description="folder on this node for remote shards; empty: one in the temporary folder"
    )
    cache_gib: Operational[float] = Field(
        50.0, gt=0, le=1_000_000, description="size limit of that folder in GiB: more than two windows of shards"
    )


class CheckpointConfig(Settings):
    """When checkpoints are written, and which are kept."""

    every: int = Field(500, ge=1, le=1_000_000_000, description="optimizer steps between two checkpoints")
    keep: int = Field(2, ge=1, le=10_000, description="number of newest checkpoints to keep")
    keep_every: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="keep the checkpoints of steps divisible by this, too; null: only the newest",
    )


class ValidationConfig(Settings):
    """The loss of the moving average, which is what is published, on held-out samples."""

    every: int | None = Field(
        500,
        ge=1,
        le=1_000_000_000,
        description="optimizer steps between two measurements of the loss on held-out samples; null: never",
    )
    samples: int = Field(256, ge=1, le=100_000, description="number of held-out samples to measure on, at most")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of their noise and timesteps; use the same to compare two runs"
    )


class SamplesConfig(Settings):
    """Sample images that the model draws while it trains."""

    every: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="optimizer steps between two drawings of sample images; null: only after samples.steps",
    )
    steps: tuple[int, ...] = Field((), description="optimizer steps after which sample images are drawn")
    prompts: tuple[str, ...] = Field(
        (), description="prompts of the sample images; none: commonest and held-out captions of the dataset"
    )
    denoising_steps: int = Field(20, ge=1, le=1000, description="denoising steps of the sample images")
    guidance: float = Field(2.0, ge=0, le=50, description="classifier-free guidance scale of the sample images")


class MetricsConfig(Settings):
    """Where metrics go, and how often."""

    log_every: int = Field(10, ge=1, le=1_000_000, description="optimizer steps between two lines of progress")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="trackers that get the metrics besides the run's own files; credentials: from the environment"
    )
    project: str = Field("darkroom", min_length=1, max_length=100, description="W&B project of the run")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f".trackers names one twice: {', '.join(self.trackers)}")
        return self


class LimitsConfig(Settings):
    """How long training may stand still, how long it may take to stop, and when it is given up."""

    start_seconds: float | None = Field(
        3600.0,
        gt=0,
        le=604_800,
        description="seconds until the first step is done, or the rank counts as hung; null: no limit",
    )
    hang_seconds: float | None = Field(
        900.0,
        gt=0,
        le=604_800,
        description="seconds from step to step, with checkpoints, samples and compiling, or the rank counts as hung; "
        "null: no limit",
    )
    stop_grace_seconds: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="seconds to save and end after a stop signal; then the ranks end without saving",
    )
    crash_grace_seconds: float = Field(
        5.0, ge=0, le=86_400, description="seconds that ranks go on after one has crashed, before they are killed"
    )
    max_skipped_steps: int = Field(
        50,
        ge=0,
        le=1_000_000,
        description="steps in a row that are skipped for a gradient that is not finite, before training ends",
    )


class NoticesConfig(Settings):
    """Warnings of the cloud that it will reclaim this node."""

    cloud: Literal["none", "aws", "gcp", "azure"] = Field(
        "none", description="cloud whose metadata server is asked whether it will reclaim this node"
    )
    every: float = Field(2.0, gt=0, le=60, description="seconds between two such requests")
    address: str = Field(
        "http://169.254.169.254", pattern=r"^http://[^/\s]+$", description="address of the metadata server"
    )
    rebalance: bool = Field(False, description="stop also when AWS recommends to rebalance, long before")


class TrainConfig(Settings):
    """What the trainer computes and how it goes about it."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        **{name: f"optimizer.{name}" for name in OptimizerConfig.model_fields},
        **{name: f"performance.{name}" for name in PerformanceConfig.model_fields},
        **{name: f"data.{name}" for name in DataConfig.model_fields},
        **{name: f"limits.{name}" for name in LimitsConfig.model_fields},
        "ema_decay": "ema.decay",
        "checkpoint_every": "checkpoint.every",
        "keep": "checkpoint.keep",
        "keep_every": "checkpoint.keep_every",
        "validate_every": "validation.every",
        "validation_samples": "validation.samples",
        "validation_seed": "validation.seed",
        "sample_every": "samples.every",
        "sample_steps": "samples.steps",
        "sample_prompts": "samples.prompts",
        "sample_denoising_steps": "samples.denoising_steps",
        "sample_guidance": "samples.guidance",
        "log_every": "metrics.log_every",
        "trackers": "metrics.trackers",
        "tracker_project": "metrics.project",
        "notices": "notices.cloud",
        "notices_every": "notices.every",
        "notices_address": "notices.address",
        "notices_rebalance": "notices.rebalance",
    }

    steps: int | None = Field(
        1000,
        ge=1,
        le=1_000_000_000,
        description="optimizer steps in all; null if train.epochs says how long to train",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="how often each training sample is seen, instead of train.steps and on any number of ranks; it "
        "becomes a number of steps when training starts",
    )
    global_batch: int = Field(64, ge=1, le=1_000_000, description="images per optimizer step, over all ranks")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of samples trained with the empty prompt")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="dtype of forward and backward; masters are fp32, and fp16 losses are scaled dynamically"
    )
    exact_across_world_sizes: bool = Field(
        False, description="make the weights' bytes the same at any number of ranks, slowly (stage 0, fp32)"
    )
    ranks: Operational[int] = Field(
        1, ge=1, le=1024, description="processes on this node (on a cluster PET_NPROC_PER_NODE says so)"
    )
    micro_batch: Operational[int] = Field(32, ge=1, le=65_536, description="images per forward pass and rank, at most")
    zero_stage: Operational[Literal[0, 1, 2, 3]] = Field(
        1, description="DeepSpeed shards 1 moments, 2 gradients, 3 weights"
    )

    continued: ContinuedConfig = ContinuedConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    performance: Operational[PerformanceConfig] = PerformanceConfig()
    data: DataConfig = DataConfig()
    checkpoint: Operational[CheckpointConfig] = CheckpointConfig()
    validation: Operational[ValidationConfig] = ValidationConfig()
    samples: Operational[SamplesConfig] = SamplesConfig()
    metrics: Operational[MetricsConfig] = MetricsConfig()
    limits: Operational[LimitsConfig] = LimitsConfig()
    notices: Operational[NoticesConfig] = NoticesConfig()

    @model_validator(mode="before")
    @classmethod
    def _epochs_replace_the_default(cls, values: Any) -> Any:
        """Let ``epochs`` alone say how long to train: only a number of steps that was given contradicts it."""
        if isinstance(values, Mapping) and values.get("epochs") is not None and "steps" not in values:
            return {**values, "steps": None}
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = [*self._length_problems()]
        if self.exact_across_world_sizes and (self.zero_stage != 0 or self.precision != "fp32"):
            problems.append(
                ".exact_across_world_sizes needs .zero_stage 0 and .precision fp32, "
                f"not {self.zero_stage} and {self.precision}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _length_problems(self) -> Iterator[str]:
        if self.epochs is not None and self.steps is not None:
            yield f".steps ({self.steps}) and .epochs ({self.epochs:g}) are both set; set one of them to null"
        if self.epochs is None and self.steps is None:
            yield ".steps and .epochs are both null; set one of them"
        if self.steps is None:
            return
        warmup, late = self.optimizer.warmup_steps, [step for step in self.samples.steps if not 0 < step <= self.steps]
        if warmup >= self.steps:
            yield f".optimizer.warmup_steps ({warmup}) must be below .steps ({self.steps})"
        if self.continued.step >= self.steps:
            yield f".steps ({self.steps}) must be above .continued.step ({self.continued.step})"
        if late:
            yield f".samples.steps {shown(late)} must be from 1 to .steps ({self.steps})"

    @property
    def last_step(self) -> int:
        """The number of optimizer steps; it is known from the start, or once `in_steps` was called."""
        assert self.steps is not None, "train.epochs is not yet a number of steps; call in_steps first"
        return self.steps

    def in_steps(self, samples: int) -> TrainConfig:
        """Return the same settings with a number of steps in place of ``epochs``, if that was set.

        What follows depends on the data and the global batch alone, so every attempt on any number of ranks gets the
        same number. Sample images that were asked for after later steps are not drawn.

        Args:
            samples: How many samples the dataset has to train on.

        Raises:
            ConfigError: If the warm-up takes longer than the training.
        """
        if self.epochs is None:
            return self
        steps = steps_of_epochs(self.epochs, samples, self.global_batch)
        drawn = [step for step in self.samples.steps if step <= steps]
        values = self.model_dump(mode="json") | {"epochs": None, "steps": steps}
        values["samples"] |= {"steps": drawn}
        try:
            return TrainConfig.parse(values)
        except ConfigError as error:
            raise ConfigError(
                f"train.epochs {self.epochs:g} on {samples} samples makes {steps} steps: {error}"
            ) from None

    def validates_after(self, step: int) -> bool:
        """Tell whether the loss on held-out samples is due after an optimizer step; it is before the first (0), too."""
        every = self.validation.every
        return every is not None and (step % every == 0 or step == self.last_step)

    def draws_after(self, step: int) -> bool:
        """Tell whether sample images are due after an optimizer step."""
        every = self.samples.every
        return step in self.samples.steps or (every is not None and step > 0 and step % every == 0)

    def saves_after(self, step: int) -> bool:
        """Tell whether a checkpoint is due after an optimizer step."""
        return step == self.last_step or step % self.checkpoint.every == 0

    def pauses_after(self, step: int) -> bool:
        """Tell whether anything but the next step is due after an optimizer step."""
        return self.saves_after(step) or self.validates_after(step) or self.draws_after(step)

    def identity(self) -> str:
        """Return the digest of every setting that what is computed depends on.

        A training is the same one whether its length was given in steps or in epochs.
        """
        values = self.without_operational()
        assert values.pop("epochs") is None, "train.epochs is not yet a number of steps; call in_steps first"
        return digest(values)


def steps_of_epochs(epochs: float, samples: int, global_batch: int) -> int:
    """Return the fewest optimizer steps in which each sample is seen ``epochs`` times on average."""
    # Without the rounding, 0.1 epochs of 30 samples would be a little more than 3 of them.
    return max(1, math.ceil(round(epochs * samples / global_batch, 6)))


def epochs_of_steps(steps: int, samples: int, global_batch: int) -> float:
    """Return how often each sample is seen on average in a number of optimizer steps."""
    return steps * global_batch / samples
