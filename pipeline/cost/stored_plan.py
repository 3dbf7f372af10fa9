"""The plan that is stored with a run, ``runs/<run>/plan.json``; the bill and the report compare with it."""

from __future__ import annotations

import contextlib

from pydantic import ValidationError

from components.accounting.bill import Planned
from components.accounting.ledger import LEDGER
from components.errors import ConfigError, NotFound
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.cost.history import History, model_size, read_history
from pipeline.cost.plan import PLAN, Assumptions, Plan
from pipeline.cost.planning import make_plan
from pipeline.cost.prices import PriceList, read_prices


def plan_run(
    settings: RunConfig, prices: PriceList, workdir: Storage | None, images: int | None, assumptions: Assumptions
) -> Plan:
    """Return the plan of a run, using the measurements of earlier runs in a workdir.

    Raises:
        ConfigError: If ``placement.instance`` is not in the price list.
    """
    history = read_history(settings, workdir) if workdir is not None else History()
    images = history.images if images is None else images
    return make_plan(settings, prices, model_size(settings), history.speed, images, assumptions)


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
