"""Plans a run before it begins: hours, dollars, storage, how often to save, spot against on-demand.

Pure: the settings, a price list and earlier measurements go in; out comes a plan that says what it assumes and what it
lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from components.accounting.ledger import LedgerPool, Pool
from components.errors import ConfigError
from components.model.gpu_peaks import peak_flops
from components.model.unet_shape import TRAINING_OVER_FORWARD
from components.train.config import TrainConfig, epochs_of_steps
from pipeline.config import RunConfig
from pipeline.cost.epochs import epochs_warning
from pipeline.cost.forecast import (
    CHECKPOINT_BYTES,
    HOUR,
    Forecast,
    Interruptions,
    daly,
    forecast,
    images_per_second,
    kept_checkpoints,
    sample_bytes,
    seconds_between_interruptions,
)
from pipeline.cost.history import MeasuredSpeed, ModelSize, processes, published_speed
from pipeline.cost.plan import Assumptions, Plan, PoolPlan
from pipeline.cost.prices import Instance, PriceList
from pipeline.placement import spot_grace

_GB = 1e9
_START_SECONDS = 300.0  # from having nodes to the first step, if not measured
_NOTICED_SHARE = 0.9  # of reclaims come with their notice


def make_plan(
    settings: RunConfig,
    prices: PriceList,
    model: ModelSize | None,
    measured: MeasuredSpeed | None = None,
    images: int | None = None,
    assumptions: Assumptions | None = None,
    repeats: float = 1.0,
) -> Plan:
    """Return the plan of a run.

    Args:
        settings: The run.
        prices: Prices of machine types.
        model: Size of its model; None if not known.
        measured: Speed of an earlier run with the same settings.
        images: Images in the dataset; None if not known.
        assumptions: What to assume; None for the defaults.
        repeats: How often an image stands in an epoch on average.

    Raises:
        ConfigError: If ``placement.instance`` is not in the price list.
    """
    estimate = _Estimate(settings, prices, model, measured, images, assumptions or Assumptions(), repeats)
    train = estimate.train
    plan = Plan(
        run=settings.run,
        model=model.name if model is not None else str(settings.model.base),
        parameters=model.shape.parameters if model is not None else None,
        flops_per_image=estimate.flops_per_image,
        nodes=estimate.nodes,
        processes=estimate.processes,
        instance=settings.placement.instance,
        gpu=estimate.gpu,
        steps=train.last_step,
        epochs=estimate.epochs,
        images_trained=estimate.images_trained,
        images_per_second=estimate.speed.images_per_second,
        speed_basis=estimate.speed.basis,
        mfu=estimate.speed.mfu,
        work_hours=None if estimate.work_seconds is None else estimate.work_seconds / HOUR,
        pool="local" if estimate.on_this_machine else settings.placement.first_pool,
        pools=estimate.pools(),
        checkpoint_every=train.checkpoint.every,
        checkpoint_bytes=estimate.checkpoint_bytes,
        checkpoints_kept=estimate.checkpoints_kept,
        dataset_bytes=estimate.dataset_bytes,
        storage_usd_per_month=estimate.storage_usd_per_month,
        budget_usd=settings.launch.budget_usd,
    )
    unusual = epochs_warning(estimate.epochs, train, settings.model.base) if estimate.epochs is not None else None
    plan = replace(plan, warnings=() if unusual is None else (unusual,))
    return replace(plan, assumed=tuple(_assumptions(estimate, plan)), unknown=tuple(_unknowns(plan, images)))


@dataclass(frozen=True)
class _Speed:
    images_per_second: float | None
    basis: str
    mfu: float | None = None


@dataclass(frozen=True)
class _Estimate:
    """The inputs of a plan, and what follows from them."""

    settings: RunConfig
    prices: PriceList
    model: ModelSize | None
    measured: MeasuredSpeed | None
    images: int | None
    assumptions: Assumptions
    repeats: float

    @cached_property
    def instance(self) -> Instance | None:
        """The machine type's prices; None if it is any type, or not in the list while the settings give a price."""
        name = self.settings.placement.instance
        if name is None or (name not in self.prices.instances and self.settings.launch.usd_per_hour is not None):
            return None
        return self.prices.instance(name)

    @property
    def gpu(self) -> str:
        return self.instance.gpu if self.instance is not None else ""

    @property
    def on_this_machine(self) -> bool:
        """Whether training runs on this machine, whatever it is."""
        return self.settings.launch.where == "local" and self.settings.placement.instance is None

    @property
    def nodes(self) -> int:
        return 1 if self.settings.launch.where == "local" else self.settings.placement.nodes

    @property
    def processes(self) -> int:
        return processes(self.settings)

    @property
    def images_trained(self) -> int:
        return self.train.last_step * self.train.global_batch

    @cached_property
    def train(self) -> TrainConfig:
        """The training's settings, with a number of steps in place of epochs."""
        train = self.settings.train
        if train.epochs is None:
            return train
        if self.epoch_images is None:
            raise ConfigError(
                f"train.epochs is {train.epochs:g}, so the steps depend on the number of images; give --images"
            )
        return train.in_steps(self.epoch_images)

    @property
    def epoch_images(self) -> int | None:
        """Images of an epoch; an estimate, since what is rejected and held out is known only later."""
        if self.images is None:
            return None
        return max(1, round(self.images * (1 - self.settings.index.held_out) * self.repeats))

    @property
    def epochs(self) -> float | None:
        """How often each image is seen in training, on average if some are repeated."""
        if self.epoch_images is None:
            return None
        return epochs_of_steps(self.train.last_step, self.epoch_images, self.train.global_batch)

    @cached_property
    def flops_per_image(self) -> int | None:
        return TRAINING_OVER_FORWARD * self.model.forward_flops() if self.model is not None else None

    @cached_property
    def speed(self) -> _Speed:
        """The best estimate of the speed: given, measured in an earlier run, published, or computed."""
        peak = peak_flops(self.gpu, self.settings.train.precision, tf32=True) if self.gpu else None
        speed, basis = self._observed_speed() or (None, "not known")
        if speed is None and self.flops_per_image is not None and peak is not None:
            speed = images_per_second(self.flops_per_image, peak, self.processes, self.assumptions.mfu)
            basis = "FLOPs of the model ÷ (peak × MFU)"
        if speed is None or self.flops_per_image is None or peak is None:
            return _Speed(speed, basis)
        return _Speed(speed, basis, speed * self.flops_per_image / (peak * self.processes))

    def _observed_speed(self) -> tuple[float, str] | None:
        if self.assumptions.images_per_second is not None:
            return self.assumptions.images_per_second, "given"
        if self.measured is not None:
            return self.measured.images_per_second, f"measured in {self.measured.run}"
        if self.model is None or not self.gpu or self.settings.train.precision == "fp32":
            return None
        speed = published_speed(self.model.shape, self.settings.latents.resolution, self.gpu, self.processes)
        return (speed.on(self.processes), f"published: {speed.gpus} GPUs, {speed.source}") if speed else None

    @property
    def work_seconds(self) -> float | None:
        """Seconds of optimizer steps."""
        return self.images_trained / self.speed.images_per_second if self.speed.images_per_second else None

    @property
    def checkpoint_bytes(self) -> int | None:
        return CHECKPOINT_BYTES * self.model.shape.parameters if self.model is not None else None

    @property
    def checkpoints_kept(self) -> int:
        checkpoint = self.train.checkpoint
        return kept_checkpoints(self.train.last_step, checkpoint.every, checkpoint.keep, checkpoint.keep_every)

    @property
    def dataset_bytes(self) -> int | None:
        if self.model is None or self.images is None:
            return None
        shape, side = self.model.shape, self.model.side
        return self.images * sample_bytes(shape.latent_channels, side, side, self.model.tokens, shape.context)

    @property
    def storage_usd_per_month(self) -> float | None:
        if self.checkpoint_bytes is None:
            return None
        stored_bytes = self.checkpoint_bytes * self.checkpoints_kept + (self.dataset_bytes or 0)
        return stored_bytes / _GB * self.prices.storage.usd_per_gb_month

    @cached_property
    def no_interruptions(self) -> Interruptions:
        """How long an interruption takes, with none expected; how often one comes depends on the pool."""
        assumptions, size = self.assumptions, (self.checkpoint_bytes or 0) / _GB
        stall = size / self.processes / assumptions.copy_gb_per_second
        save = stall + size / self.nodes / assumptions.write_gb_per_second
        start = self.measured.start_seconds if self.measured is not None else _START_SECONDS
        saved_share = _NOTICED_SHARE if save <= spot_grace(self.settings.placement) else 0.0
        return Interruptions(
            between=math.inf,
            saved_share=saved_share if assumptions.saved_share is None else assumptions.saved_share,
            stall=stall,
            save=save,
            wait=assumptions.wait_seconds,
            start=start if assumptions.start_seconds is None else assumptions.start_seconds,
        )

    def pools(self) -> dict[LedgerPool, PoolPlan]:
        """Return each pool that training could run in, or only this machine."""
        reclaims, failures = self.assumptions.reclaims_per_node_day, self.assumptions.failures_per_node_day
        if self.on_this_machine:
            price = PoolPlan(self.settings.launch.usd_per_hour or 0.0, "this machine")
            return {"local": self._pool(price, replace(self.no_interruptions, wait=0.0))}
        spot = seconds_between_interruptions(failures + reclaims, self.nodes)
        on_demand = seconds_between_interruptions(failures, self.nodes)
        return {
            "spot": self._pool(self._price("spot"), replace(self.no_interruptions, between=spot)),
            "on-demand": self._pool(
                self._price("on-demand"), replace(self.no_interruptions, between=on_demand, saved_share=0.0)
            ),
        }

    def _price(self, pool: Pool) -> PoolPlan:
        usd_per_hour = self.settings.launch.usd_per_hour
        if usd_per_hour is not None:
            return PoolPlan(usd_per_hour, "launch.usd_per_hour")
        price = self.instance.price(pool) if self.instance is not None else None
        if price is None:
            return PoolPlan(None, "not known")
        source = self.prices.sources[price.source]
        return PoolPlan(price.usd, f"{source.url}, {source.date}")

    def _pool(self, price: PoolPlan, interruptions: Interruptions) -> PoolPlan:
        work, train = self.work_seconds, self.train
        if work is None:
            return price
        step_seconds = work / train.last_step
        usd = price.usd_per_node_hour if price.usd_per_node_hour is not None else math.nan

        def saving_every(steps: int) -> Forecast:
            return forecast(work, self.images_trained, steps * step_seconds, interruptions, self.nodes, usd)

        pool = replace(price, forecast=saving_every(train.checkpoint.every))
        losses = interruptions.between_losses
        if math.isinf(losses) or interruptions.stall == 0:  # nothing is ever lost, or the time of a save is not known
            return pool
        # A checkpoint begins only after the one before is written.
        best = min(max(daly(interruptions.stall, losses), interruptions.save), work)
        steps = max(1, round(best / step_seconds))
        return replace(pool, best_steps=steps, best_seconds=steps * step_seconds, best=saving_every(steps))


def _assumptions(estimate: _Estimate, plan: Plan) -> Iterator[str]:
    assumptions, interruptions = estimate.assumptions, estimate.no_interruptions
    if plan.speed_basis.startswith("FLOPs"):
        yield f"training reaches {assumptions.mfu:.0%} of the peak of {plan.gpu} (mfu)"
    gpus = estimate.processes // estimate.nodes
    if estimate.instance is not None and estimate.instance.gpus != gpus:
        yield f"{plan.instance} has {estimate.instance.gpus} GPUs; training uses {gpus} of them, and all are paid for"
    if plan.pool != "local":
        yield f"a spot node is taken away {assumptions.reclaims_per_node_day:g} × a day (reclaims_per_node_day)"
        yield f"any node fails by itself {assumptions.failures_per_node_day:g} × a day (failures_per_node_day)"
        share = f"{interruptions.saved_share:.0%}"
        yield f"{share} of the reclaims leave enough time to save first, {interruptions.save:.0f} s (saved_share)"
        yield f"nodes come after {interruptions.wait:.0f} s, unpaid (wait_seconds)"
        yield f"the first step begins {interruptions.start:.0f} s after nodes come (start_seconds)"
    if plan.checkpoint_bytes is not None:
        yield f"training pauses {interruptions.stall:.2g} s per checkpoint (copy_gb_per_second)"
    if any(pool.best is not None for pool in plan.pools.values()):
        yield (
            "the Young–Daly interval is for reclaims and failures without notice, and at least as long as a save: "
            f"{interruptions.save:.2g} s (write_gb_per_second)"
        )
    yield "not counted: captions, encoding, evaluation, validation, sample images and network traffic"


def _unknowns(plan: Plan, images: int | None) -> Iterator[str]:
    if plan.parameters is None:
        yield f"the size of {plan.model}; use a local folder that holds it, or a model with its family in the name"
    if plan.images_per_second is None:
        yield (
            "the speed; set placement.instance, or give --assume images_per_second=N, or the --workdir of an earlier "
            "run with the same settings"
        )
    for name, pool in plan.pools.items():
        if pool.usd_per_node_hour is None:
            yield f"the {name} price; add it to the price list (--prices), or set launch.usd_per_hour"
    if images is None:
        yield "the number of images, so the size of the dataset; give --images"
