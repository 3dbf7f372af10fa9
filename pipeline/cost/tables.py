"""Plans and bills as tables for a terminal of 80 columns. Pure: numbers in, lines out.

Names may be hostile, and they come out printable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from components.accounting.bill import HOUR
from components.accounting.bill_text import comparison, cost_line
from components.html import formatting
from pipeline.cost.forecast import Forecast
from pipeline.cost.plan import Plan, PoolPlan

WIDTH = 80
_FACT = 13
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def show(console: Console, table: RenderableType) -> None:
    """Print a plan or a bill, at most 80 columns wide."""
    console.print(table, width=min(console.width, WIDTH) if console.is_terminal else WIDTH)


def plan_table(plan: Plan) -> RenderableType:
    """Return a plan as tables: the run, the pools side by side, what it assumes and what it lacks."""
    parts: list[RenderableType] = [_facts(_subject(plan)), Text()]
    if plan.pools:
        parts += [_pools(plan), Text()]
    parts.append(_facts(_storage_and_budget(plan)))
    for title, notes in (("warnings", plan.warnings), ("assumptions", plan.assumed), ("not known", plan.unknown)):
        if notes:
            parts += [Text(), Text(title, "bold"), *(_note(note) for note in notes)]
    return Group(*parts)


def bill_table(run: str, bill: Mapping[str, Any], preemptions: int, running: int | None = None) -> RenderableType:
    """Return a bill as tables: by state, by attempt, beside the plan, in total.

    Args:
        run: Name of the run.
        bill: Its bill, as `components.accounting.bill` makes it.
        preemptions: How often nodes were taken away.
        running: Number of the attempt that is running and not on the bill yet; None if there is none.
    """
    title = Text(formatting.one_line(run), "bold")
    parts: list[RenderableType] = [title, Text(), _states(bill), Text(), _attempts(bill)]
    if rows := comparison(bill, preemptions):
        beside = _table("beside the plan", "planned", "actual")
        for row in rows:
            _row(beside, *row)
        parts += [Text(), beside]
    parts += [Text(), Text(_plain(cost_line(bill)))]
    if running is not None:
        parts.append(Text(f"Attempt {running} is running; it is added when it ends."))
    return Group(*parts)


def _subject(plan: Plan) -> Iterator[tuple[str, str]]:
    weights = "size not known" if plan.parameters is None else f"{plan.parameters / 1e6:,.1f} M weights"
    flops = "" if plan.flops_per_image is None else f", {_flops(plan.flops_per_image)} per image"
    yield "run", plan.run
    yield "model", f"{plan.model}: {weights}{flops}"
    yield "nodes", _nodes(plan)
    epochs = "" if plan.epochs is None else f", {formatting.number(plan.epochs)} epochs"
    yield "training", f"{plan.steps:,} steps, {plan.images_trained:,} images{epochs}"
    if plan.images_per_second is not None:
        share = "" if plan.mfu is None else f", {plan.mfu:.0%} of the peak"
        yield "speed", f"{_plain(formatting.number(plan.images_per_second))} images/s{share} ({plan.speed_basis})"


def _nodes(plan: Plan) -> str:
    where = "this machine" if plan.pool == "local" else f"{plan.nodes} × {plan.instance or 'any machine type'}"
    return f"{where}, {plan.processes} × {plan.gpu}" if plan.gpu else f"{where}, {_process_count(plan.processes)}"


def _process_count(processes: int) -> str:
    return f"{processes:,} process" + ("" if processes == 1 else "es")


def _pools(plan: Plan) -> Table:
    names = list(plan.pools)
    table = _table("", *(f"{name} ←" if name == plan.pool and len(names) > 1 else name for name in names))
    for label, cell in _POOL_ROWS:
        cells = [cell(plan.pools[name]) for name in names]
        if any(text != formatting.DASH for text in cells):
            _row(table, label, *cells)
    return table


def _forecast(cell: Callable[[Forecast], str]) -> Callable[[PoolPlan], str]:
    return lambda pool: cell(pool.forecast) if pool.forecast is not None else formatting.DASH


def _usd(amount: float | None) -> str:
    if amount is None or math.isnan(amount):
        return formatting.DASH
    return "never ends" if math.isinf(amount) else formatting.usd(amount)


def _hours(hours: float) -> str:
    return "never ends" if math.isinf(hours) else _plain(formatting.duration(hours * HOUR))


def _save_every(pool: PoolPlan) -> str:
    if pool.best_steps is None or pool.best_seconds is None:
        return formatting.DASH
    return f"{pool.best_steps:,} steps, {_plain(formatting.duration(pool.best_seconds))}"


_POOL_ROWS: tuple[tuple[str, Callable[[PoolPlan], str]], ...] = (
    ("time until the end", _forecast(lambda forecast: _hours(forecast.hours))),
    ("time paid for", _forecast(lambda forecast: _hours(forecast.paid_hours))),
    ("goodput", _forecast(lambda forecast: _plain(formatting.percent(forecast.goodput)))),
    ("interruptions", _forecast(lambda forecast: formatting.number(forecast.interruptions))),
    ("$ per node and hour", lambda pool: _usd(pool.usd_per_node_hour)),
    ("$ in total", _forecast(lambda forecast: _usd(forecast.usd))),
    ("$ per useful hour", _forecast(lambda forecast: _usd(forecast.usd_per_useful_hour))),
    ("$ per 1,000 images", _forecast(lambda forecast: _usd(forecast.usd_per_1000_images))),
    ("Young–Daly: save every", _save_every),
    ("goodput then", lambda pool: _plain(formatting.percent(pool.best.goodput)) if pool.best else formatting.DASH),
)


def _storage_and_budget(plan: Plan) -> Iterator[tuple[str, str]]:
    every = f"every {plan.checkpoint_every:,} steps"
    if plan.work_hours is not None:
        every += f", {_plain(formatting.duration(plan.work_hours * HOUR / plan.steps * plan.checkpoint_every))}"
    size = (
        "" if plan.checkpoint_bytes is None else f"; {_size(plan.checkpoint_bytes)} each, {plan.checkpoints_kept} kept"
    )
    yield "checkpoints", f"{every} as configured{size}"
    if plan.storage_usd_per_month is not None:
        dataset = "without the dataset" if plan.dataset_bytes is None else f"dataset {_size(plan.dataset_bytes)}"
        yield "storage", f"{dataset}; {formatting.usd(plan.storage_usd_per_month)} per month"
    if plan.budget_usd is not None:
        yield "budget", _budget(plan, plan.budget_usd)


def _budget(plan: Plan, budget: float) -> str:
    expected = plan.expected
    if expected is None or math.isnan(expected.usd):
        return f"{formatting.usd(budget)}; cost not known"
    if expected.usd <= budget:
        return f"{formatting.usd(budget)}, enough"
    return f"{formatting.usd(budget)}, enough for about {int(plan.steps * budget / expected.usd):,} steps"


def _states(bill: Mapping[str, Any]) -> Table:
    table = _table("state", "time", "node-hours", "share", "$")
    seconds = bill["seconds"] or 1.0
    for state, part in bill["states"].items():
        if part["seconds"]:
            share = _plain(formatting.percent(part["seconds"] / seconds))
            _row(table, formatting.one_line(state), *_amounts(part), share, formatting.usd(part["usd"]))
    goodput = "" if bill["goodput"] is None else f"{_plain(formatting.percent(bill['goodput']))} useful"
    table.add_section()
    _row(table, "total", *_amounts(bill), goodput, formatting.usd(bill["usd"]))
    return table


def _attempts(bill: Mapping[str, Any]) -> Table:
    table = _table("attempt", "nodes", "time", "node-hours", "useful", "$")
    for attempt in bill["attempts"]:
        instance = f" {formatting.one_line(attempt['instance'])}" if attempt["instance"] else ""
        nodes = f"{attempt['nodes']} {attempt['pool']}{instance}"
        useful = _plain(formatting.percent(attempt["goodput"]))
        _row(table, str(attempt["attempt"]), nodes, *_amounts(attempt), useful, formatting.usd(attempt["usd"]))
    return table


def _amounts(part: Mapping[str, Any]) -> tuple[str, str]:
    return _plain(formatting.duration(part["seconds"])), formatting.number(part["node_seconds"] / HOUR)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="left" if name == "nodes" else "right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # as Text: rich would read brackets as markup


def _facts(facts: Iterator[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=_FACT, style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(formatting.one_line(value)))
    return table


def _note(note: str) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("·", Text(formatting.one_line(note)))
    return Padding(table, (0, 0, 0, 1))


def _flops(flops: float) -> str:
    return f"{flops / 1e12:,.3g} TFLOPs" if flops >= 1e11 else f"{flops / 1e9:,.2g} GFLOPs"


def _size(size: float) -> str:
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def _plain(text: str) -> str:
    return text.replace(formatting.SPACE, " ")
