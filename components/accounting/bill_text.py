"""A bill as text: by pool, beside the plan, and in one line. Pure.

The report's page, the dashboard and ``darkroom cost`` all show these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from components.accounting.bill import HOUR
from components.html.formatting import DASH, count, duration, number, percent, usd


class ComparisonRow(NamedTuple):
    """One number, as planned and as it turned out."""

    label: str
    planned: str
    actual: str


class PoolRow(NamedTuple):
    """What the nodes of one pool add up to."""

    pool: str
    hours: str
    node_hours: str
    usd: str


def comparison(bill: Mapping[str, Any], preemptions: int) -> list[ComparisonRow]:
    """Return the plan beside the actual numbers; numbers that were not planned have no row.

    Args:
        bill: A bill, as `components.accounting.bill` makes it.
        preemptions: How often nodes were taken away.
    """
    planned = bill["planned"]
    if planned is None:
        return []
    hours = planned["hours"]
    rows = [
        ComparisonRow("Time", duration(None if hours is None else hours * HOUR), duration(bill["seconds"])),
        ComparisonRow("Goodput", percent(planned["goodput"]), percent(bill["goodput"])),
        ComparisonRow("Preemptions", number(planned["interruptions"]), count(preemptions)),
    ]
    if planned["usd"] or bill["usd"]:
        per_1000_images = "usd_per_1000_images"
        rows += [
            ComparisonRow("Cost", usd(planned["usd"]), usd(bill["usd"])),
            ComparisonRow("Per 1,000 images", usd(planned[per_1000_images]), usd(bill[per_1000_images])),
        ]
    return [row for row in rows if row.planned != DASH]


def pool_rows(bill: Mapping[str, Any]) -> list[PoolRow]:
    """Return one row per pool, in the order in which they were first used."""
    return [
        PoolRow(pool, number(part["seconds"] / HOUR), number(part["node_seconds"] / HOUR), usd(part["usd"]))
        for pool, part in bill["pools"].items()
    ]


def cost_line(bill: Mapping[str, Any]) -> str:
    """Return the cost in one line: in total, per useful hour and per image, and what is left of the budget."""
    text = f"{usd(bill['usd'])} in total"
    if bill["usd_per_useful_hour"] is not None:
        text += f", {usd(bill['usd_per_useful_hour'])} per useful hour"
    if bill["usd_per_1000_images"] is not None:
        text += f", {usd(bill['usd_per_1000_images'])} per 1,000 images"
    budget = bill["budget"]
    if budget is None:
        return f"{text}."
    if budget["left"] < 0:
        return f"{text}; over the budget of {usd(budget['usd'])} by {usd(-budget['left'])}."
    return f"{text}; {usd(budget['left'])} of the budget of {usd(budget['usd'])} are left."
