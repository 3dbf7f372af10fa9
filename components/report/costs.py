"""The bill as page and dashboard show it: by pool, by state, and beside the plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from components.accounting.bill import HOUR
from components.html.formatting import DASH, count, duration, number, percent, usd


class Compared(NamedTuple):
    """One number of the plan beside the actual one."""

    label: str
    planned: str
    actual: str


class PoolRow(NamedTuple):
    """What the nodes of one pool took and cost."""

    pool: str
    hours: str
    node_hours: str
    usd: str


def compared(cost: Mapping[str, Any], preemptions: int) -> list[Compared]:
    """Return the plan beside the actual numbers, for whatever was planned.

    Args:
        cost: A bill, as `components.accounting.bill` makes it.
        preemptions: How often training was preempted.
    """
    planned = cost["planned"]
    if planned is None:
        return []
    hours = planned["hours"]
    rows = [
        Compared("Time", duration(None if hours is None else hours * HOUR), duration(cost["seconds"])),
        Compared("Goodput", percent(planned["goodput"]), percent(cost["goodput"])),
        Compared("Preemptions", number(planned["interruptions"]), count(preemptions)),
    ]
    if planned["usd"] or cost["usd"]:
        rows += [
            Compared("Cost", usd(planned["usd"]), usd(cost["usd"])),
            Compared("Per 1,000 images", usd(planned["usd_per_1000_images"]), usd(cost["usd_per_1000_images"])),
        ]
    return [row for row in rows if row.planned != DASH]


def pool_rows(cost: Mapping[str, Any]) -> list[PoolRow]:
    """Return one row per pool, in the order in which they were first used."""
    return [
        PoolRow(pool, number(part["seconds"] / HOUR), number(part["node_seconds"] / HOUR), usd(part["usd"]))
        for pool, part in cost["pools"].items()
    ]


def paid(cost: Mapping[str, Any]) -> str:
    """Return in one line the cost, its rates, and what remains of the budget."""
    text = f"{usd(cost['usd'])} in all"
    if cost["usd_per_useful_hour"] is not None:
        text += f", {usd(cost['usd_per_useful_hour'])} per useful hour"
    if cost["usd_per_1000_images"] is not None:
        text += f", {usd(cost['usd_per_1000_images'])} per 1,000 images"
    budget = cost["budget"]
    if budget is None:
        return f"{text}."
    if budget["left"] < 0:
        return f"{text}; the budget of {usd(budget['usd'])} was exceeded by {usd(-budget['left'])}."
    return f"{text}; the budget of {usd(budget['usd'])} leaves {usd(budget['left'])}."
