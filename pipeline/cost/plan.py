"""A plan: what a run is going to take, before it begins. Only what it holds; `pipeline.cost.planning` makes it.

It is stored with the run, and the report holds it against the ledger.
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
    """What a plan takes for granted where nothing better is known."""

    images_per_second: float | None = Field(
        None, gt=0, description="speed of training over all GPUs; null: measured, published, or from mfu"
    )
    mfu: float = Field(0.25, gt=0, le=1, description="share of the GPUs' peak FLOP/s that training reaches")
    reclaims_per_node_day: float = Field(1.0, ge=0, le=1000, description="how often a spot machine is taken, per day")
    failures_per_node_day: float = Field(
        0.004,
        ge=0,
        le=1000,
        description="how often a machine fails by itself, per day (Llama 3: 419 times on 2,048 nodes in 54 days)",
    )
    saved_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of reclaims with notice enough to save; null: 0.9 where a save fits, else 0",
    )
    wait_seconds: float = Field(600.0, ge=0, description="seconds until machines are given; not paid for")
    start_seconds: float | None = Field(
        None, ge=0, description="seconds from then to the first step; null: measured, or 300"
    )
    copy_gb_per_second: float = Field(5.0, gt=0, description="GB/s at which a GPU's state is copied out of it")
    write_gb_per_second: float = Field(1.0, gt=0, description="GB/s at which a node writes to the store")


@dataclass(frozen=True)
class PoolPlan:
    """What training takes in one pool.

    Attributes:
        usd_per_node_hour: The price; None where it is not known, and all other dollars with it.
        source: Where the price was read, and when.
        forecast: With checkpoints as often as configured; None where the speed is not known.
        best_steps: Optimizer steps between two checkpoints, by Young and Daly.
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
    """All that is said of a run before it begins; sizes are bytes, dollars US dollars."""

    run: str
    model: str
    parameters: int | None
    flops_per_image: int | None
    nodes: int
    processes: int
    instance: str | None
    gpu: str
    steps: int
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
    assumed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def expected(self) -> Forecast | None:
        """What the pool that training starts in is expected to take."""
        chosen = self.pools.get(self.pool)
        return chosen.forecast if chosen is not None else None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object; what never ends or is not known is null."""
        expected = self.expected
        values = asdict(self) | {"expected": None if expected is None else asdict(expected)}
        cleaned: dict[str, Any] = _finite(values)
        return cleaned


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
