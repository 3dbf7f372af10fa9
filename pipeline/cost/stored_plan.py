"""The plan that is stored with a run, ``runs/<run>/plan.json``; the bill and the report compare with it."""

from __future__ import annotations

import contextlib

from pydantic import ValidationError

from components.accounting.bill import Planned
from components.accounting.ledger import LEDGER
from components.errors import ConfigError, DarkroomError, NotFound
from components.image.records import read_manifest
from components.image.union import mean_repeats
from components.image.union_source import open_places
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.cost.history import History, model_size, read_history
from pipeline.cost.plan import PLAN, Assumptions, Plan
from pipeline.cost.planning import make_plan
from pipeline.cost.prices import PriceList, read_prices


def plan_run(
    settings: RunConfig,
    prices: PriceList,
    workdir: Storage | None,
    images: int | None,
    assumptions: Assumptions,
    repeats: float | None = None,
) -> Plan:
    """Return the plan of a run, using the measurements of earlier runs in a workdir.

    Args:
        settings: The run.
        prices: Prices of machine types.
        workdir: The storage with earlier runs; None for none.
        images: How many images it has; None: as many as the newest run on the same source.
        assumptions: What to assume.
        repeats: How often an image stands in an epoch on average; None: as ingest has last counted, if it has.

    Raises:
        ConfigError: If ``placement.instance`` is not in the price list.
    """
    history = read_history(settings, workdir) if workdir is not None else History()
    images = history.images if images is None else images
    if repeats is None:
        repeats = _repeats(settings, workdir) if workdir is not None and settings.ingest.sources else 1.0
    return make_plan(settings, prices, model_size(settings), history.speed, images, assumptions, repeats)


def _repeats(settings: RunConfig, workdir: Storage) -> float:
    """Return how often an image of several sources stands in an epoch on average, 1 if they are not listed yet."""
    config = settings.ingest
    with contextlib.suppress(DarkroomError):
        source_id = config.records_id([source.url for source in open_places(config.places)])
        return mean_repeats(read_manifest(workdir, source_id).members)
    return 1.0


def store_plan(settings: RunConfig, workdir: Storage, images: int | None = None) -> None:
    """Store the plan of a run; once training has begun, a stored plan does not change any more.

    Args:
        settings: The run.
        workdir: The storage of its folder.
        images: How many images it has; None: as many as the newest run on the same source.

    Raises:
        ConfigError: If ``placement.prices`` names a file that is not a price list.
    """
    prices = read_prices(settings.placement.prices)
    run = workdir.child(f"runs/{settings.run}")
    if run.exists(PLAN) and run.exists(LEDGER):
        return
    with contextlib.suppress(ConfigError):  # a run may use machine types that have no price
        run.write_json(PLAN, plan_run(settings, prices, workdir, images, Assumptions()).to_json())


def read_planned(run: Storage) -> Planned | None:
    """Return what a run's bill needs of its plan; None if there is no plan, or it is from another version."""
    try:
        return Planned.model_validate(run.read_json(PLAN))
    except (NotFound, ValidationError):
        return None
