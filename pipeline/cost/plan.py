"""A plan: the expected time and cost of a run, before it begins. `pipeline.cost.planning` makes one.

It is stored with the run, and the report compares it with the ledger.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from components.accounting.ledger import LedgerPool
from components.settings import Settings
from pipeline.cost.forecast import Forecast

PLAN = "plan.json"


class Assumptions(Settings):
    """What a plan assumes if nothing better is known."""

    images_per_second: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="images/s in training over all GPUs; null: measured, published, or computed from mfu",
    )
    mfu: float = Field(0.25, gt=0, le=1, description="share of the GPUs' peak FLOP/s that training reaches")
    reclaims_per_node_day: float = Field(1.0, ge=0, le=1000, description="how often a spot node is taken away, per day")
    failures_per_node_day: float = Field(
        0.004,
        ge=0,
        le=1000,
        description="how often a node fails by itself, per day (Llama 3: 419 times on 2,048 nodes in 54 days)",
    )
    saved_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of reclaims with enough notice to save; null: 0.9 if a save fits into the notice, else 0",
    )
    wait_seconds: float = Field(600.0, ge=0, le=31_536_000, description="seconds of waiting for nodes; not paid for")
    start_seconds: float | None = Field(
        None, ge=0, le=86_400, description="seconds from having nodes to the first step; null: measured, or 300"
    )
    copy_gb_per_second: float = Field(5.0, gt=0, le=1e6, description="GB/s at which state is copied out of a GPU")
    write_gb_per_second: float = Field(1.0, gt=0, le=1e6, description="GB/s at which a node writes to storage")


@dataclass(frozen=True)
class PoolPlan:
    """The expected time and cost of training in one pool.

    Attributes:
        usd_per_node_hour: The price; None if it is not known, and then no other dollars are known either.
        source: Where the price was read, and when.
        forecast: With checkpoints as often as configured; None if the speed is not known.
        best_steps: Best number of optimizer steps between two checkpoints, by Young and Daly.
        best_seconds: The same in seconds of work.
        best: The forecast with checkpoints that often.
    """

    usd_per_node_hour: float | None
    source: str
    forecast: Forecast | None = None
    best_steps: int | None = None
    best_seconds: float | None = None
    best: Forecast | None = None


@dataclass(frozen=True)
class Plan:
    """All numbers of a plan; sizes are in bytes, prices in US dollars.

    ``warnings``, ``assumed`` and ``unknown`` are sentences: what looks like a mistake, what the plan assumes, and what
    it lacks. ``epochs`` is how often each image is seen; None if the number of images is not known.
    """

    run: str
    model: str
    parameters: int | None
    flops_per_image: int | None
    nodes: int
    processes: int
    instance: str | None
    gpu: str
    steps: int
    epochs: float | None
    images_trained: int
    images_per_second: float | None
    speed_basis: str
    mfu: float | None
    work_hours: float | None
    pool: LedgerPool
    pools: dict[LedgerPool, PoolPlan]
    checkpoint_every: int
    checkpoint_bytes: int | None
    checkpoints_kept: int
    dataset_bytes: int | None
    storage_usd_per_month: float | None
    budget_usd: float | None
    warnings: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def expected(self) -> Forecast | None:
        """The forecast for the pool in which training starts."""
        pool = self.pools.get(self.pool)
        return pool.forecast if pool is not None else None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object; what is infinite or not known is null."""
        expected = self.expected
        values = asdict(self) | {"expected": None if expected is None else asdict(expected)}
        finite: dict[str, Any] = _finite(values)
        return finite


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(item) for name, item in value.items()}
        case float() if not math.isfinite(value):
            return None
    return value
