"""Plans a run before it begins: hours, dollars, storage, how often to save, spot against on-demand.

Pure: the settings, a price list and what is known go in; a plan comes out that says what it assumed and what it does
not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from components.peaks import peak_flops
from components.unet_shape import TRAINING_OVER_FORWARD
from pipeline.config import RunConfig
from pipeline.cost import (
    CHECKPOINT_BYTES,
    Forecast,
    Interruptions,
    daly,
    forecast,
    gang_between,
    images_per_second,
    kept_checkpoints,
    sample_bytes,
)
from pipeline.known import Measured, Model, processes
from pipeline.placement import spot_grace
from pipeline.plan import Assumptions, Plan, PoolPlan
from pipeline.prices import Instance, PriceList
from pipeline.throughputs import published, speed_like

_GB = 1e9


@dataclass(frozen=True)
class _Speed:
    images_per_second: float | None
    basis: str
    mfu: float | None


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
    taken = assumptions or Assumptions()
    placement, train = settings.placement, settings.train
    machine = _machine(settings, prices)
    gpu = machine.gpu if machine is not None else ""
    speed = _speed(settings, model, gpu, seen, taken)
    trained = train.steps * train.global_batch
    work = trained / speed.images_per_second if speed.images_per_second else None
    state = CHECKPOINT_BYTES * model.shape.parameters if model is not None else None
    kept = kept_checkpoints(train.steps, train.checkpoint_every, train.keep, train.keep_every)
    dataset = None if model is None or images is None else images * _sample(model)
    stored = [size for size in (dataset, None if state is None else state * kept) if size is not None]
    local = settings.launch.where == "local" and placement.instance is None
    how = _interruptions(settings, state, seen, taken)
    plan = Plan(
        run=settings.run,
        model=model.name if model is not None else str(settings.model.base),
        parameters=model.shape.parameters if model is not None else None,
        flops_per_image=TRAINING_OVER_FORWARD * model.forward_flops() if model is not None else None,
        nodes=1 if local else placement.nodes,
        processes=processes(settings),
        instance=placement.instance,
        gpu=gpu,
        steps=train.steps,
        images_trained=trained,
        images_per_second=speed.images_per_second,
        speed_basis=speed.basis,
        mfu=speed.mfu,
        work_hours=None if work is None else work / 3600,
        pool="local" if local else placement.first_pool,
        pools=_pools(settings, prices, machine, work, how, local, taken),
        checkpoint_every=train.checkpoint_every,
        checkpoint_bytes=state,
        checkpoints_kept=kept,
        dataset_bytes=dataset,
        storage_usd_per_month=sum(stored) / _GB * prices.storage.usd_per_gb_month if stored else None,
        budget_usd=settings.launch.budget_usd,
    )
    assumed = tuple(_assumed(settings, plan, how, taken, machine))
    return replace(plan, assumed=assumed, unknown=tuple(_unknown(plan, images)))


def _machine(settings: RunConfig, prices: PriceList) -> Instance | None:
    """Return what the list knows of the machines; None where they are of any type, or their price is told."""
    name = settings.placement.instance
    if name is None or (name not in prices.instances and settings.launch.usd_per_hour is not None):
        return None
    return prices.instance(name)


def _speed(settings: RunConfig, model: Model | None, gpu: str, seen: Measured | None, taken: Assumptions) -> _Speed:
    """Return the best that is known of the speed: told, measured here, published, or told from the arithmetic."""
    count = processes(settings)
    peak = peak_flops(gpu, settings.train.precision, tf32=True) if gpu else None
    flops = TRAINING_OVER_FORWARD * model.forward_flops() if model is not None else None

    def known(speed: float, basis: str) -> _Speed:
        used = speed * flops / (peak * count) if flops is not None and peak is not None and count else None
        return _Speed(speed, basis, used)

    if taken.images_per_second is not None:
        return known(taken.images_per_second, "as told")
    if seen is not None:
        return known(seen.images_per_second, f"measured in {seen.run}")
    if model is not None and gpu and settings.train.precision != "fp32":
        one = published(model.shape, settings.latents.resolution, gpu, count)
        if one is not None:
            return known(speed_like(one, count), f"published: {one.gpus} GPUs, {one.source}")
    if flops is None or peak is None:
        return _Speed(None, "not known", None)
    return _Speed(images_per_second(flops, peak, count, taken.mfu), "FLOPs of the model ÷ (peak × MFU)", taken.mfu)


def _interruptions(settings: RunConfig, state: int | None, seen: Measured | None, taken: Assumptions) -> Interruptions:
    """Return what an interruption costs; how often they come depends on the pool."""
    size, placement = (state or 0) / _GB, settings.placement
    stall = size / processes(settings) / taken.copy_gb_per_second
    save = stall + size / placement.nodes / taken.write_gb_per_second
    start = (
        taken.start_seconds if taken.start_seconds is not None else seen.start_seconds if seen is not None else 300.0
    )
    fits = 0.9 if save <= spot_grace(placement) else 0.0
    return Interruptions(
        between=math.inf,
        saved_share=fits if taken.saved_share is None else taken.saved_share,
        stall=stall,
        save=save,
        wait=taken.wait_seconds,
        start=start,
    )


def _pools(
    settings: RunConfig,
    prices: PriceList,
    machine: Instance | None,
    work: float | None,
    how: Interruptions,
    local: bool,
    taken: Assumptions,
) -> dict[str, PoolPlan]:
    nodes = settings.placement.nodes
    failing = gang_between(taken.failures_per_node_day, nodes)
    taken_away = gang_between(taken.failures_per_node_day + taken.reclaims_per_node_day, nodes)
    stays = replace(how, between=failing, saved_share=0.0)
    if local:
        here = replace(how, between=math.inf, wait=0.0)
        price = settings.launch.usd_per_hour or 0.0
        return {"local": _pool(settings, PoolPlan(price, "this machine"), work, here, 1)}
    reclaims = {"spot": replace(how, between=taken_away), "on-demand": stays}
    return {
        pool: _pool(settings, _price(settings, prices, machine, pool), work, interrupted, nodes)
        for pool, interrupted in reclaims.items()
    }


def _price(settings: RunConfig, prices: PriceList, machine: Instance | None, pool: str) -> PoolPlan:
    told = settings.launch.usd_per_hour
    if told is not None:
        return PoolPlan(told, "launch.usd_per_hour")
    found = machine.price("spot" if pool == "spot" else "on-demand") if machine is not None else None
    if found is None:
        return PoolPlan(None, "not known")
    source = prices.sources[found.source]
    return PoolPlan(found.usd, f"{source.url}, {source.date}")


def _pool(settings: RunConfig, price: PoolPlan, work: float | None, how: Interruptions, nodes: int) -> PoolPlan:
    if work is None:
        return price
    train = settings.train
    step = work / train.steps
    usd = price.usd_per_node_hour if price.usd_per_node_hour is not None else math.nan

    def foretell(steps: int) -> Forecast:
        return forecast(work, train.steps * train.global_batch, steps * step, how, nodes, usd)

    if math.isinf(how.between):  # nothing to save for
        return replace(price, forecast=foretell(train.checkpoint_every))
    # As if none came with notice: what a notice saves is a gift, the checkpoints are what is relied on. No checkpoint
    # begins before the one before is written.
    best = max(daly(how.stall, how.between), how.save) if how.stall > 0 else work
    steps = max(1, round(min(best, work) / step))
    return replace(
        price,
        forecast=foretell(train.checkpoint_every),
        best_steps=steps,
        best_seconds=steps * step,
        best=foretell(steps),
    )


def _sample(model: Model) -> int:
    shape = model.shape
    return sample_bytes(shape.latent_channels, model.side, model.side, model.tokens, shape.context)


def _assumed(
    settings: RunConfig, plan: Plan, how: Interruptions, taken: Assumptions, machine: Instance | None
) -> Iterator[str]:
    if plan.speed_basis.startswith("FLOPs"):
        yield f"training reaches {taken.mfu:.0%} of the peak of {plan.gpu} (mfu)"
    if machine is not None and machine.gpus != settings.placement.gpus:
        yield (
            f"a {plan.instance} has {machine.gpus} GPUs; placement.gpus uses {settings.placement.gpus} of them, "
            "and all are paid for"
        )
    if plan.pool != "local":
        yield f"a spot machine is taken {taken.reclaims_per_node_day:g} × a day (reclaims_per_node_day)"
        yield f"any machine fails {taken.failures_per_node_day:g} × a day by itself (failures_per_node_day)"
        yield f"{how.saved_share:.0%} of the reclaims leave the {how.save:.0f} s to save first (saved_share)"
        yield f"machines come after {how.wait:.0f} s, unpaid, and train {how.start:.0f} s later"
    if plan.checkpoint_bytes is not None:
        yield (f"training stands still for {how.stall:.2g} s per checkpoint (copy_gb_per_second)")
        yield (
            "Young and Daly's interval counts on no notice, and is not shorter than a save takes: "
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
