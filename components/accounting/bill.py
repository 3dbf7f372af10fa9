"""The bill of a training: what its ledger comes to, by state, pool and attempt, beside what was planned. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from components.accounting.ledger import LedgerLine, Total, by_attempt, by_pool, by_state, goodput, total

HOUR = 3600
Amount = Annotated[float, Field(ge=0, le=1e15)]


class Expected(BaseModel):
    """What a plan expected of the pool that training started in; None where it could not tell."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    hours: Amount | None = None
    usd: Amount | None = None
    goodput: Annotated[float, Field(ge=0, le=1)] | None = None
    interruptions: Amount | None = None
    usd_per_1000_images: Amount | None = None


class Planned(BaseModel):
    """What the bill needs of ``plan.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    expected: Expected | None = None
    pool: str = ""


def bill(
    lines: Iterable[LedgerLine], images: int, planned: Planned | None = None, budget_usd: float | None = None
) -> dict[str, Any]:
    """Return the bill as a JSON object; what cannot be told is null.

    Args:
        lines: The ledger.
        images: Images trained on in steps that count, each time one is seen.
        planned: What was planned; None where nothing was.
        budget_usd: What may be spent, in US dollars; None for no limit.

    Returns:
        Sums of ``seconds`` of wall clock, ``node_seconds`` and ``usd``; the same for each state and pool; each attempt
        with what it ran on; ``planned`` and ``budget``.
    """
    known = list(lines)
    whole = total(known)
    useful = total(line for line in known if line.state == "useful").seconds / HOUR
    return {
        **whole._asdict(),
        "hours": whole.seconds / HOUR,
        "goodput": goodput(known),
        "useful_hours": useful,
        "usd_per_useful_hour": whole.usd / useful if useful > 0 else None,
        "images": images,
        "usd_per_1000_images": 1000 * whole.usd / images if images > 0 else None,
        "states": _each(by_state(known)),
        "pools": _each(by_pool(known)),
        "attempts": [_attempt(number, part) for number, part in by_attempt(known).items()],
        "planned": planned.expected.model_dump() if planned is not None and planned.expected is not None else None,
        "budget": None if budget_usd is None else {"usd": budget_usd, "left": budget_usd - whole.usd},
    }


def costs(told: dict[str, Any]) -> bool:
    """Tell whether a bill says more than that nothing was paid on this machine."""
    return told["usd"] > 0 or any(pool != "local" for pool in told["pools"])


def _each(totals: dict[Any, Total]) -> dict[str, dict[str, float]]:
    return {str(name): part._asdict() for name, part in totals.items()}


def _attempt(number: int, lines: Sequence[LedgerLine]) -> dict[str, Any]:
    """Return what one attempt comes to; it ran in one pool, on machines of one kind."""
    paid = next((line for line in lines if line.usd_per_hour), lines[0])
    return {
        "attempt": number,
        "pool": paid.pool,
        "instance": paid.instance,
        "nodes": paid.nodes,
        "usd_per_hour": paid.usd_per_hour,
        **total(lines)._asdict(),
        "goodput": goodput(lines),
    }
