"""Renders the page: what was counted, drawn and read goes into ``report.html``, and all of its text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.report import wording
from components.report.account import FAILED
from components.report.attempts import Attempt, attempts
from components.report.charts import ledger_bar, loss_chart, small_chart, timeline
from components.report.config import ReportConfig
from components.report.curves import Point, smooth
from components.report.gallery import Gallery
from components.report.records import Metric, Records, StepRecord
from components.report.svg import responsive
from components.report.verdict import badge, figures, headline, origin, publication, title

STATE_MEANING = {
    "loading": "processes start; model, data and checkpoint are read",
    "useful": "optimizer steps that count",
    "saving": "training waits for a checkpoint",
    "lost": "optimizer steps that had to be done again",
    "idle": "no trainer runs: between attempts, or waiting for machines",
}
MEASURES = {
    "prompt_accuracy": ("Prompt accuracy", "generated images that show what their prompt asks for"),
    "judge_accuracy": ("Accuracy of the judge", "held-out real images that the same judge reads correctly"),
    "frechet_distance": ("Fréchet distance", "generated images to held-out real ones; lower is better"),
    "frechet_reference": (
        "Fréchet reference",
        "real training images to held-out real ones: what perfection would score",
    ),
    "generated": ("Generated images", "drawn from fixed prompts and seeds"),
}
_SHARES = ("accuracy", "share", "fraction")


@dataclass(frozen=True)
class StepRow:
    """One step of the pipeline, its groups together."""

    name: str
    groups: int
    failed: bool
    seconds: float
    share: float
    facts: str
    error: str | None


def page(numbers: Mapping[str, Any], records: Records, gallery: Gallery, config: ReportConfig) -> str:
    """Return the whole page as HTML.

    Args:
        numbers: The run's account.
        records: What the account was made from.
        gallery: The pictures.
        config: How much to show.
    """
    tries = attempts(records.events)
    shown = tries[-config.attempts :]
    rejections = records.rejected[: config.rejections]
    return (
        _environment()
        .get_template("report.html")
        .render(
            n=numbers,
            title=title(numbers),
            badge=badge(numbers),
            headline=headline(numbers),
            origin=origin(numbers),
            publication=publication(numbers),
            figures=figures(numbers),
            gallery=gallery,
            loss=_loss(records.metrics, tries, config.smoothing),
            curves=_curves(records.metrics, config.smoothing),
            attempts=shown,
            attempts_left_out=len(tries) - len(shown),
            timeline=responsive(partial(timeline, shown)) if shown else None,
            ledger_bar=ledger_bar(numbers["ledger"]) if numbers["ledger"] else None,
            meaning=STATE_MEANING,
            measures=_measures(records),
            steps=step_rows(records.steps),
            rejections=rejections,
            rejections_left_out=numbers["rejected"] - len(rejections),
            config_yaml=yaml.safe_dump(records.config, sort_keys=False, allow_unicode=True) if records.config else None,
            missing={
                **numbers["missing"],
                **{f"runs/{numbers['run']}/{key}": why for key, why in gallery.missing.items()},
            },
        )
    )


def step_rows(steps: Sequence[StepRecord]) -> list[StepRow]:
    """Return one row per step, in the order of their first start; ``share`` is of the longest step's time."""
    by_step: dict[str, list[StepRecord]] = {}
    for record in steps:
        by_step.setdefault(record.step, []).append(record)
    seconds = {name: sum(record.seconds for record in group) for name, group in by_step.items()}
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        StepRow(
            name=name,
            groups=len(group),
            failed=any(record.status == FAILED for record in group),
            seconds=seconds[name],
            share=seconds[name] / longest,
            facts=wording.facts(_together([record.result or {} for record in group])),
            error=next((record.error for record in group if record.error), None),
        )
        for name, group in by_step.items()
    ]


def _together(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of a step's groups as one, their whole numbers added up."""
    if len(results) == 1:
        return dict(results[0])
    names = {name for result in results for name, value in result.items() if type(value) is int}
    ordered = [name for name in results[0] if name in names] if results else []
    return {
        name: sum(result.get(name, 0) for result in results if type(result.get(name, 0)) is int) for name in ordered
    }


def _loss(metrics: Sequence[Metric], tries: Sequence[Attempt], smoothing: float) -> Markup | None:
    raw = _points(metrics, "loss")
    if not raw:
        return None
    marks = {
        attempt.last_step: "preempted" if attempt.preempted else "failed"
        for attempt in tries
        if attempt.last_step is not None and attempt.exit_code not in (0, None)
    }
    return responsive(partial(loss_chart, raw, _smooth(raw, smoothing), marks))


def _curves(metrics: Sequence[Metric], smoothing: float) -> list[tuple[str, Markup]]:
    # The learning rate is set, not measured: there is nothing to smooth.
    names = {
        "lr": ("Learning rate", 0.0),
        "grad_norm": ("Gradient norm", smoothing),
        "seconds": ("Seconds per step", smoothing),
    }
    return [
        (label, small_chart(points, _smooth(points, share), f"{label} by optimizer step"))
        for name, (label, share) in names.items()
        if (points := _points(metrics, name))
    ]


def _smooth(points: Sequence[Point], smoothing: float) -> list[Point]:
    return smooth(points, smoothing * (points[-1].step - points[0].step))


def _points(metrics: Sequence[Metric], name: str) -> list[Point]:
    return [Point(metric.step, value) for metric in metrics if (value := getattr(metric, name)) is not None]


def _measures(records: Records) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of every number of the evaluation."""
    found = records.evaluation.metrics if records.evaluation else {}
    order = {name: place for place, name in enumerate(MEASURES)}
    rows = []
    for name, value in sorted(found.items(), key=lambda item: (item[0] not in order, order.get(item[0], 0), item[0])):
        label, meaning = MEASURES.get(name, (name.replace("_", " "), ""))
        share = 0 <= value <= 1 and any(word in name for word in _SHARES)
        whole = value == int(value)
        rows.append(
            (
                label,
                wording.percent(value) if share else wording.count(value) if whole else wording.number(value),
                meaning,
            )
        )
    return rows


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "duration", "number", "percent", "plural", "one_line", "moment"):
        environment.filters[name] = getattr(wording, name)
    return environment


def _shown(value: Any) -> Any:
    """Return what a template puts on the page: text without the controls that could hide or reorder it."""
    return wording.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
