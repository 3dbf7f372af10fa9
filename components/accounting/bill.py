"""The bill of a training: what its ledger adds up to, by state, pool and attempt, beside the plan. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from components.accounting.ledger import LedgerLine, Total, by_attempt, by_pool, by_state, goodput, total

HOUR = 3600
Amount = Annotated[float, Field(ge=0, le=1e15)]


class Expected(BaseModel):
    """What a plan expected for the pool in which training started; None if it did not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    hours: Amount | None = None
    usd: Amount | None = None
    goodput: Annotated[float, Field(ge=0, le=1)] | None = None
    interruptions: Amount | None = None
    usd_per_1000_images: Amount | None = None


class Planned(BaseModel):
    """The part of ``plan.json`` that a bill needs."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    expected: Expected | None = None
    pool: str = ""


def bill(
    lines: Iterable[LedgerLine], images: int, planned: Planned | None = None, budget_usd: float | None = None
) -> dict[str, Any]:
    """Return the bill as a JSON object; what is not known is null.

    Args:
        lines: The ledger.
        images: Images trained on in steps that count; an image counts each time it is used.
        planned: The plan; None if there was none.
        budget_usd: The budget in US dollars; None for no limit.

    Returns:
        Sums of ``seconds`` of wall clock, ``node_seconds`` and ``usd``; the same for each state and pool; each attempt
        with the nodes that it ran on; ``planned`` and ``budget``.
    """
    lines = list(lines)
    whole = total(lines)
    useful_hours = total(line for line in lines if line.state == "useful").seconds / HOUR
    return {
        **whole._asdict(),
        "hours": whole.seconds / HOUR,
        "goodput": goodput(lines),
        "useful_hours": useful_hours,
        "usd_per_useful_hour": whole.usd / useful_hours if useful_hours > 0 else None,
        "images": images,
        "usd_per_1000_images": 1000 * whole.usd / images if images > 0 else None,
        "states": _each(by_state(lines)),
        "pools": _each(by_pool(lines)),
        "attempts": [_attempt(number, part) for number, part in by_attempt(lines).items()],
        "planned": planned.expected.model_dump() if planned is not None and planned.expected is not None else None,
        "budget": None if budget_usd is None else {"usd": budget_usd, "left": budget_usd - whole.usd},
    }


def costs_money(bill: dict[str, Any]) -> bool:
    """Return whether anything was paid for, or could have been: not for a run on this machine that has no price."""
    return bill["usd"] > 0 or any(pool != "local" for pool in bill["pools"])


def _each(totals: dict[Any, Total]) -> dict[str, dict[str, float]]:
    return {str(name): part._asdict() for name, part in totals.items()}


def _attempt(number: int, lines: Sequence[LedgerLine]) -> dict[str, Any]:
    """Return what one attempt adds up to; it ran in one pool, on nodes of one machine type."""
    line_with_price = next((line for line in lines if line.usd_per_hour), lines[0])
    return {
        "attempt": number,
        "pool": line_with_price.pool,
        "instance": line_with_price.instance,
        "nodes": line_with_price.nodes,
        "usd_per_hour": line_with_price.usd_per_hour,
        **total(lines)._asdict(),
        "goodput": goodput(lines),
    }
