"""The report for places that show no page: a few lines of Markdown, and plain numbers for a dashboard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from components.accounting.bill import HOUR
from components.accounting.bill_text import comparison, cost_line, pool_rows
from components.html.formatting import duration, in_markdown, number, usd
from components.report.overview import badge, figures, headline, origin, publication, title

# The numbers of ``report.json`` that dashboards plot over runs, besides the metrics of the evaluation.
NUMBERS = (
    "images", "held_out", "rejected", "encoded", "reused", "steps", "attempts", "preemptions", "steps_lost",
    "training_seconds", "goodput", "samples_per_second", "mfu", "data_wait_share", "checkpoint_stall_share",
    "validation_loss", "base_share", "wall_seconds", "usd", "usd_per_useful_hour", "usd_per_1000_images",
)  # fmt: skip


def metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return the plain numbers of ``report.json`` that there are, with each metric and its reference."""
    values = {name: numbers[name] for name in NUMBERS}
    for name, metric in numbers["metrics"].items():
        values |= {name: metric["value"], f"{name}_reference": metric["reference"]}
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def markdown(numbers: Mapping[str, Any]) -> str:
    """Return the outcome, the main numbers and the time of each step as Markdown; all text is escaped."""
    lines = [f"# {in_markdown(title(numbers))}", ""]
    lines += [f"**{in_markdown(badge(numbers).text)}.** {in_markdown(headline(numbers))}", ""]
    lines += [in_markdown(origin(numbers)), ""]
    if numbers["error"]:
        lines += [f"> {in_markdown(numbers['error']['message'])}", ""]
    lines += [in_markdown(publication(numbers) or f"Published as {numbers['published']}"), ""]
    lines += ["| | | |", "|---|---:|---|"]
    lines += [
        f"| {in_markdown(label)} | {value} | {in_markdown(', '.join(notes))} |"
        for label, value, notes in figures(numbers)
    ]
    lines += ["", "| step | time |", "|---|---:|"]
    lines += [f"| {in_markdown(step)} | {duration(seconds)} |" for step, seconds in numbers["seconds"].items()]
    lines += _cost(numbers)
    return "\n".join(lines) + "\n"


def _cost(numbers: Mapping[str, Any]) -> list[str]:
    """Return the bill as tables, if anything was paid for or planned."""
    cost = numbers["cost"]
    if cost is None or (numbers["usd"] is None and cost["planned"] is None):
        return []
    lines = []
    if numbers["usd"] is not None:
        lines += ["", in_markdown(cost_line(cost)), "", "| pool | hours | node-hours | cost |", "|---|---:|---:|---:|"]
        lines += [
            f"| {in_markdown(pool)} | {rest} |" for pool, *cells in pool_rows(cost) for rest in [" | ".join(cells)]
        ]
        lines += ["", "| state | node-hours | cost |", "|---|---:|---:|"]
        lines += [
            f"| {in_markdown(state)} | {number(part['node_seconds'] / HOUR)} | {usd(part['usd'])} |"
            for state, part in cost["states"].items()
            if part["seconds"]
        ]
    if rows := comparison(cost, numbers["preemptions"]):
        lines += ["", "| | planned | actual |", "|---|---:|---:|"]
        lines += [f"| {label} | {planned} | {actual} |" for label, planned, actual in rows]
    return lines
