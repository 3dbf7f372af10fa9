"""Plans a run before it begins: hours, dollars, storage, how often to save, spot against on-demand.

Pure: the settings, a price list and what is known go in; a plan comes out that says what it assumed and what it does
not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from components.accounting.ledger import LedgerPool, Pool
from components.model.gpu_peaks import peak_flops
from components.model.unet_shape import TRAINING_OVER_FORWARD
from pipeline.config import RunConfig
from pipeline.cost.forecast import (
    CHECKPOINT_BYTES,
    HOUR,
    Forecast,
    Interruptions,
    daly,
    forecast,
    gang_between,
    images_per_second,
    kept_checkpoints,
    sample_bytes,
)
from pipeline.cost.history import Measured, Model, processes
from pipeline.cost.plan import Assumptions, Plan, PoolPlan
from pipeline.cost.prices import Instance, PriceList
from pipeline.cost.throughputs import published, speed_like
from pipeline.placement import spot_grace

_GB = 1e9
_START = 300.0  # seconds from machines given to the first step, where none were measured
_WARNED = 0.9  # share of reclaims that come with their notice, where a save fits into it


def make_plan(
    settings: RunConfig,
    prices: PriceList,
    model: Model | None,
    seen: Measured | None = None,
    images: int | None = None,
    assumptions: Assumptions | None = None,
) -> Plan:
    """Return the plan of a run.

    Args:
        settings: The run.
        prices: What machines cost.
        model: Its model; None where its size is not known.
        seen: What an earlier run like it was seen to do.
        images: Images in the dataset; None where that is not known.
        assumptions: What to take for granted; None: the defaults.

    Raises:
        ConfigError: Where the price list does not know ``placement.instance``.
    """
    case = _Case(settings, prices, model, seen, images, assumptions or Assumptions())
    train = settings.train
    plan = Plan(
        run=settings.run,
        model=model.name if model is not None else str(settings.model.base),
        parameters=model.shape.parameters if model is not None else None,
        flops_per_image=case.flops_per_image,
        nodes=case.nodes,
        processes=case.processes,
        instance=settings.placement.instance,
        gpu=case.gpu,
        steps=train.steps,
        images_trained=case.trained,
        images_per_second=case.speed.images_per_second,
        speed_basis=case.speed.basis,
        mfu=case.speed.mfu,
        work_hours=None if case.work is None else case.work / HOUR,
        pool="local" if case.here else settings.placement.first_pool,
        pools=case.pools(),
        checkpoint_every=train.checkpoint.every,
        checkpoint_bytes=case.checkpoint_bytes,
        checkpoints_kept=case.checkpoints_kept,
        dataset_bytes=case.dataset_bytes,
        storage_usd_per_month=case.storage_usd_per_month,
        budget_usd=settings.launch.budget_usd,
    )
    return replace(plan, assumed=tuple(_assumed(case, plan)), unknown=tuple(_unknown(plan, images)))


@dataclass(frozen=True)
class _Speed:
    images_per_second: float | None
    basis: str
    mfu: float | None = None


@dataclass(frozen=True)
class _Case:
    """All that a plan is made from, and what follows from it."""

    settings: RunConfig
    prices: PriceList
    model: Model | None
    seen: Measured | None
    images: int | None
    taken: Assumptions

    @cached_property
    def machine(self) -> Instance | None:
        """What the list knows of the machines; None where they are of any type, or their price is told."""
        name = self.settings.placement.instance
        if name is None or (name not in self.prices.instances and self.settings.launch.usd_per_hour is not None):
            return None
        return self.prices.instance(name)

    @property
    def gpu(self) -> str:
        return self.machine.gpu if self.machine is not None else ""

    @property
    def here(self) -> bool:
        """Whether training runs on this machine, whatever it is."""
        return self.settings.launch.where == "local" and self.settings.placement.instance is None

    @property
    def nodes(self) -> int:
        return 1 if self.settings.launch.where == "local" else self.settings.placement.nodes

    @property
    def processes(self) -> int:
        return processes(self.settings)

    @property
    def trained(self) -> int:
        return self.settings.train.steps * self.settings.train.global_batch

    @cached_property
    def flops_per_image(self) -> int | None:
        return TRAINING_OVER_FORWARD * self.model.forward_flops() if self.model is not None else None

    @cached_property
    def speed(self) -> _Speed:
        """The best that is known of the speed: told, measured here, published, or told from the arithmetic."""
        peak = peak_flops(self.gpu, self.settings.train.precision, tf32=True) if self.gpu else None
        speed, basis = self._known_speed() or (None, "not known")
        if speed is None and self.flops_per_image is not None and peak is not None:
            speed = images_per_second(self.flops_per_image, peak, self.processes, self.taken.mfu)
            basis = "FLOPs of the model ÷ (peak × MFU)"
        if speed is None or self.flops_per_image is None or peak is None:
            return _Speed(speed, basis)
        return _Speed(speed, basis, speed * self.flops_per_image / (peak * self.processes))

    def _known_speed(self) -> tuple[float, str] | None:
        if self.taken.images_per_second is not None:
            return self.taken.images_per_second, "as told"
        if self.seen is not None:
            return self.seen.images_per_second, f"measured in {self.seen.run}"
        if self.model is None or not self.gpu or self.settings.train.precision == "fp32":
            return None
        one = published(self.model.shape, self.settings.latents.resolution, self.gpu, self.processes)
        return (speed_like(one, self.processes), f"published: {one.gpus} GPUs, {one.source}") if one else None

    @property
    def work(self) -> float | None:
        """Seconds of optimizer steps."""
        return self.trained / self.speed.images_per_second if self.speed.images_per_second else None

    @property
    def checkpoint_bytes(self) -> int | None:
        return CHECKPOINT_BYTES * self.model.shape.parameters if self.model is not None else None

    @property
    def checkpoints_kept(self) -> int:
        train = self.settings.train
        return kept_checkpoints(train.steps, train.checkpoint.every, train.checkpoint.keep, train.checkpoint.keep_every)

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
        stored = self.checkpoint_bytes * self.checkpoints_kept + (self.dataset_bytes or 0)
        return stored / _GB * self.prices.storage.usd_per_gb_month

    @cached_property
    def calm(self) -> Interruptions:
        """What an interruption costs, though none comes; how often they do depends on the pool."""
        taken, size = self.taken, (self.checkpoint_bytes or 0) / _GB
        stall = size / self.processes / taken.copy_gb_per_second
        save = stall + size / self.nodes / taken.write_gb_per_second
        start = self.seen.start_seconds if self.seen is not None else _START
        warned = _WARNED if save <= spot_grace(self.settings.placement) else 0.0
        return Interruptions(
            between=math.inf,
            saved_share=warned if taken.saved_share is None else taken.saved_share,
            stall=stall,
            save=save,
            wait=taken.wait_seconds,
            start=start if taken.start_seconds is None else taken.start_seconds,
        )

    def pools(self) -> dict[LedgerPool, PoolPlan]:
        """Return each pool that training could run in, or only this machine."""
        taken = self.taken
        if self.here:
            price = PoolPlan(self.settings.launch.usd_per_hour or 0.0, "this machine")
            return {"local": self._pool(price, replace(self.calm, wait=0.0))}
        failures = gang_between(taken.failures_per_node_day, self.nodes)
        reclaims = gang_between(taken.failures_per_node_day + taken.reclaims_per_node_day, self.nodes)
        return {
            "spot": self._pool(self._price("spot"), replace(self.calm, between=reclaims)),
            "on-demand": self._pool(self._price("on-demand"), replace(self.calm, between=failures, saved_share=0.0)),
        }

    def _price(self, pool: Pool) -> PoolPlan:
        told = self.settings.launch.usd_per_hour
        if told is not None:
            return PoolPlan(told, "launch.usd_per_hour")
        found = self.machine.price(pool) if self.machine is not None else None
        if found is None:
            return PoolPlan(None, "not known")
        source = self.prices.sources[found.source]
        return PoolPlan(found.usd, f"{source.url}, {source.date}")

    def _pool(self, price: PoolPlan, how: Interruptions) -> PoolPlan:
        work, train = self.work, self.settings.train
        if work is None:
            return price
        step = work / train.steps
        usd = price.usd_per_node_hour if price.usd_per_node_hour is not None else math.nan

        def foretell(steps: int) -> Forecast:
            return forecast(work, self.trained, steps * step, how, self.nodes, usd)

        price = replace(price, forecast=foretell(train.checkpoint.every))
        if math.isinf(how.between_losses) or how.stall == 0:  # nothing to save for, or nothing known of its cost
            return price
        # No checkpoint begins before the one before is written.
        best = min(max(daly(how.stall, how.between_losses), how.save), work)
        steps = max(1, round(best / step))
        return replace(price, best_steps=steps, best_seconds=steps * step, best=foretell(steps))


def _assumed(case: _Case, plan: Plan) -> Iterator[str]:
    taken, how = case.taken, case.calm
    if plan.speed_basis.startswith("FLOPs"):
        yield f"training reaches {taken.mfu:.0%} of the peak of {plan.gpu} (mfu)"
    used = case.processes // case.nodes
    if case.machine is not None and case.machine.gpus != used:
        yield f"a {plan.instance} has {case.machine.gpus} GPUs; training uses {used} of them, and all are paid for"
    if plan.pool != "local":
        yield f"a spot machine is taken {taken.reclaims_per_node_day:g} × a day (reclaims_per_node_day)"
        yield f"any machine fails {taken.failures_per_node_day:g} × a day by itself (failures_per_node_day)"
        yield f"{how.saved_share:.0%} of the reclaims leave the {how.save:.0f} s to save first (saved_share)"
        yield f"machines come after {how.wait:.0f} s, unpaid, and train {how.start:.0f} s later"
    if plan.checkpoint_bytes is not None:
        yield f"training stands still for {how.stall:.2g} s per checkpoint (copy_gb_per_second)"
    if any(pool.best is not None for pool in plan.pools.values()):
        yield (
            "Young and Daly's interval is for reclaims and failures without notice, and not shorter than a save takes: "
            f"{how.save:.2g} s (write_gb_per_second)"
        )
    yield "not counted: captions, encoding, evaluation, validation and sample images, traffic"


def _unknown(plan: Plan, images: int | None) -> Iterator[str]:
    if plan.parameters is None:
        yield f"the size of {plan.model}; name a folder that holds it, or a model that is called after its family"
    if plan.images_per_second is None:
        yield "the speed; set placement.instance, or give --assume images_per_second=N, or the --workdir of a like run"
    for pool, one in plan.pools.items():
        if one.usd_per_node_hour is None:
            yield f"the {pool} price; add it to the price list (--prices), or set launch.usd_per_hour"
    if images is None:
        yield "how many images there are, so the dataset's size; give --images"
