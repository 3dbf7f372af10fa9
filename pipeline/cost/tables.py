"""Plans and bills for a terminal that is 80 wide. Pure: what was counted goes in, lines come out.

Nothing here is hostile but names, and those come out printable.
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
from components.html import formatting
from components.report.costs import compared, paid
from pipeline.cost.forecast import Forecast
from pipeline.cost.plan import Plan, PoolPlan

WIDTH = 80
_FACT = 13
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def show(console: Console, shown: RenderableType) -> None:
    """Print a plan or a bill; where nobody watches, as wide as on a small terminal."""
    console.print(shown, width=min(console.width, WIDTH) if console.is_terminal else WIDTH)


def plan_table(plan: Plan) -> RenderableType:
    """Return a plan: what is trained on what, each pool beside the other, what was assumed and what is not known."""
    parts: list[RenderableType] = [_facts(_subject(plan)), Text()]
    if plan.pools:
        parts += [_pools(plan), Text()]
    parts.append(_facts(_consequences(plan)))
    for title, notes in (("assumed", plan.assumed), ("not known", plan.unknown)):
        if notes:
            parts += [Text(), Text(title, "bold"), *(_note(note) for note in notes)]
    return Group(*parts)


def bill_table(run: str, told: Mapping[str, Any], preemptions: int, running: int | None = None) -> RenderableType:
    """Return a bill: by state, by attempt, in all, beside what was planned; without the attempt that is running."""
    title = Text(formatting.one_line(run), "bold")
    parts: list[RenderableType] = [title, Text(), _states(told), Text(), _attempts(told)]
    if rows := compared(told, preemptions):
        beside = _table("beside the plan", "planned", "actual")
        for row in rows:
            _row(beside, *row)
        parts += [Text(), beside]
    parts += [Text(), Text(_plain(paid(told)))]
    if running is not None:
        parts.append(Text(f"Attempt {running} has not ended, and comes onto the bill when it does."))
    return Group(*parts)


def _subject(plan: Plan) -> Iterator[tuple[str, str]]:
    weights = "size not known" if plan.parameters is None else f"{plan.parameters / 1e6:,.1f} M weights"
    flops = "" if plan.flops_per_image is None else f", {_flops(plan.flops_per_image)} per image"
    yield "run", plan.run
    yield "model", f"{plan.model}: {weights}{flops}"
    yield "machines", _machines(plan)
    yield "training", f"{plan.steps:,} steps, {plan.images_trained:,} images"
    if plan.images_per_second is not None:
        share = "" if plan.mfu is None else f", {plan.mfu:.0%} of the peak"
        yield "speed", f"{_plain(formatting.number(plan.images_per_second))} images/s{share} ({plan.speed_basis})"


def _machines(plan: Plan) -> str:
    where = "this machine" if plan.pool == "local" else f"{plan.nodes} × {plan.instance or 'a machine of any type'}"
    return f"{where}, {plan.processes} × {plan.gpu}" if plan.gpu else f"{where}, {_counted(plan.processes, 'process')}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "es")


def _pools(plan: Plan) -> Table:
    names = list(plan.pools)
    table = _table("", *(f"{name} ←" if name == plan.pool and len(names) > 1 else name for name in names))
    for label, say in _POOL_ROWS:
        told = [say(plan, plan.pools[name]) for name in names]
        if any(one != formatting.DASH for one in told):
            _row(table, label, *told)
    return table


def _told(say: Callable[[Forecast], str]) -> Callable[[Plan, PoolPlan], str]:
    return lambda _plan, pool: say(pool.forecast) if pool.forecast is not None else formatting.DASH


def _usd(amount: float | None) -> str:
    if amount is None or math.isnan(amount):
        return formatting.DASH
    return "never done" if math.isinf(amount) else formatting.usd(amount)


def _hours(hours: float) -> str:
    return "never done" if math.isinf(hours) else _plain(formatting.duration(hours * HOUR))


def _save_every(_plan: Plan, pool: PoolPlan) -> str:
    if pool.best_steps is None or pool.best_seconds is None:
        return formatting.DASH
    return f"{pool.best_steps:,} steps, {_plain(formatting.duration(pool.best_seconds))}"


_POOL_ROWS: tuple[tuple[str, Callable[[Plan, PoolPlan], str]], ...] = (
    ("time until done", _told(lambda told: _hours(told.hours))),
    ("time paid for", _told(lambda told: _hours(told.paid_hours))),
    ("goodput", _told(lambda told: _plain(formatting.percent(told.goodput)))),
    ("interruptions", _told(lambda told: formatting.number(told.interruptions))),
    ("$ per node and hour", lambda _, pool: _usd(pool.usd_per_node_hour)),
    ("$ in all", _told(lambda told: _usd(told.usd))),
    ("$ per useful hour", _told(lambda told: _usd(told.usd_per_useful_hour))),
    ("$ per 1,000 images", _told(lambda told: _usd(told.usd_per_1000_images))),
    ("Young–Daly: save every", _save_every),
    ("goodput then", lambda _, pool: _plain(formatting.percent(pool.best.goodput)) if pool.best else formatting.DASH),
)


def _consequences(plan: Plan) -> Iterator[tuple[str, str]]:
    every = f"every {plan.checkpoint_every:,} steps"
    if plan.work_hours is not None:
        every += f", {_plain(formatting.duration(plan.work_hours * HOUR / plan.steps * plan.checkpoint_every))}"
    size = (
        "" if plan.checkpoint_bytes is None else f"; {_size(plan.checkpoint_bytes)} each, {plan.checkpoints_kept} kept"
    )
    yield "checkpoints", f"{every} as configured{size}"
    if plan.storage_usd_per_month is not None:
        dataset = "dataset not counted" if plan.dataset_bytes is None else f"dataset {_size(plan.dataset_bytes)}"
        yield "storage", f"{dataset}; {formatting.usd(plan.storage_usd_per_month)} per month"
    if plan.budget_usd is not None:
        yield "budget", _budget(plan, plan.budget_usd)


def _budget(plan: Plan, budget: float) -> str:
    expected = plan.expected
    if expected is None or math.isnan(expected.usd):
        return f"{formatting.usd(budget)}; the cost is not known"
    if expected.usd <= budget:
        return f"{formatting.usd(budget)}, enough"
    return f"{formatting.usd(budget)}, enough for about {int(plan.steps * budget / expected.usd):,} steps"


def _states(told: Mapping[str, Any]) -> Table:
    table = _table("state", "time", "node-hours", "share", "$")
    whole = told["seconds"] or 1.0
    for state, part in told["states"].items():
        if part["seconds"]:
            share = _plain(formatting.percent(part["seconds"] / whole))
            _row(table, formatting.one_line(state), *_amounts(part), share, formatting.usd(part["usd"]))
    goodput = "" if told["goodput"] is None else f"{_plain(formatting.percent(told['goodput']))} useful"
    table.add_section()
    _row(table, "all", *_amounts(told), goodput, formatting.usd(told["usd"]))
    return table


def _attempts(told: Mapping[str, Any]) -> Table:
    table = _table("attempt", "machines", "time", "node-hours", "useful", "$")
    for one in told["attempts"]:
        machines = f"{one['nodes']} {one['pool']}" + (
            f" {formatting.one_line(one['instance'])}" if one["instance"] else ""
        )
        useful = _plain(formatting.percent(one["goodput"]))
        _row(table, str(one["attempt"]), machines, *_amounts(one), useful, formatting.usd(one["usd"]))
    return table


def _amounts(part: Mapping[str, Any]) -> tuple[str, str]:
    return _plain(formatting.duration(part["seconds"])), formatting.number(part["node_seconds"] / HOUR)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="left" if name == "machines" else "right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # as they are: rich would take what is in brackets for markup


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
