"""Renders the page from ``report.html``; all text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from components.accounting.bill_text import comparison, cost_line, pool_rows
from components.html.svg import responsive
from components.html.templates import environment
from components.report.attempts import Attempt, attempts
from components.report.charts import ledger_bar, loss_chart, small_chart, timeline
from components.report.config import ReportConfig
from components.report.curves import Point, smooth
from components.report.gallery import Gallery
from components.report.overview import badge, base_share, figures, headline, judges, origin, publication, title
from components.report.records import Records, StepMetrics
from components.report.tables import STATE_MEANING, metric_rows, step_rows


def page(numbers: Mapping[str, Any], records: Records, gallery: Gallery, config: ReportConfig) -> str:
    """Return the whole page as HTML.

    Args:
        numbers: The run's account.
        records: What the account was made from.
        gallery: The images.
        config: How much to show.
    """
    tries = attempts(records.events)
    shown = tries[-config.attempts :]
    rejections = records.rejected[: config.rejections]
    unshown = {f"runs/{numbers['run']}/{key}": why for key, why in gallery.missing.items()}
    template = environment(Path(__file__).parent).get_template("report.html")
    return template.render(
        n=numbers,
        title=title(numbers),
        badge=badge(numbers),
        headline=headline(numbers),
        origin=origin(numbers),
        publication=publication(numbers),
        figures=figures(numbers),
        gallery=gallery,
        judges=judges(numbers),
        base_share=base_share(numbers),
        measures_average=all(metric.weights == "ema" for metric in records.validation),
        loss=_loss(records, tries, config.smoothing),
        held_out=_points(records.validation, "loss"),
        curves=_curves(records.metrics, config.smoothing),
        attempts=shown,
        more_attempts=len(tries) - len(shown),
        timeline=responsive(partial(timeline, shown)) if shown else None,
        ledger_bar=ledger_bar(numbers["ledger"]) if numbers["ledger"] else None,
        meaning=STATE_MEANING,
        paid=cost_line(numbers["cost"]) if numbers["usd"] is not None else None,
        pools=pool_rows(numbers["cost"]) if numbers["usd"] is not None else [],
        compared=comparison(numbers["cost"], numbers["preemptions"]) if numbers["cost"] else [],
        metrics=metric_rows(records.evaluation),
        steps=step_rows(records.steps),
        rejections=rejections,
        more_rejections=numbers["rejected"] - len(rejections),
        config_yaml=yaml.safe_dump(records.config, sort_keys=False, allow_unicode=True) if records.config else None,
        missing={**numbers["missing"], **unshown},
    )


def _loss(records: Records, tries: Sequence[Attempt], smoothing: float) -> Markup | None:
    raw = _points(records.metrics, "loss")
    if not raw:
        return None
    marks = {
        attempt.last_step: "preempted" if attempt.preempted else "failed"
        for attempt in tries
        if attempt.last_step is not None and attempt.exit_code not in (0, None)
    }
    held_out = _points(records.validation, "loss")
    return responsive(partial(loss_chart, raw, _smooth(raw, smoothing), held_out, marks))


def _curves(metrics: Sequence[StepMetrics], smoothing: float) -> list[tuple[str, Markup]]:
    # The learning rate is set, not measured: there is nothing to smooth.
    names = {
        "lr": ("Learning rate", 0.0),
        "grad_norm": ("Gradient norm", smoothing),
        "seconds": ("Seconds per step", smoothing),
        "data_wait": ("Seconds waiting for data", smoothing),
        "mfu": ("Model FLOPs utilization", smoothing),
    }
    return [
        (label, small_chart(points, _smooth(points, share), f"{label} by optimizer step"))
        for name, (label, share) in names.items()
        if (points := _points(metrics, name))
    ]


def _smooth(points: Sequence[Point], smoothing: float) -> list[Point]:
    return smooth(points, smoothing * (points[-1].step - points[0].step))


def _points(metrics: Sequence[StepMetrics], name: str) -> list[Point]:
    return [Point(metric.step, value) for metric in metrics if (value := getattr(metric, name)) is not None]
