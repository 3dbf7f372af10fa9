"""The tables of the page: what was measured, and what each step did. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from components.html.formatting import DASH, facts, plural, quantity
from components.model.metric_results import MetricResult
from components.report.account import FAILED, step_seconds
from components.report.records import Evaluation, StepRecord

STATE_MEANING = {
    "pending": "waiting for nodes; nothing is paid",
    "pulling": "nodes start and pull the container image",
    "loading": "processes start; model, data and checkpoint are read",
    "useful": "optimizer steps that were kept",
    "saving": "training waits for a checkpoint",
    "validating": "the loss on held-out images is measured",
    "sampling": "sample images are drawn",
    "lost": "optimizer steps that had to be repeated, and the time until a crash was noticed",
    "idle": "between attempts, shutting down",
}


class MetricRow(NamedTuple):
    """One metric of the evaluation."""

    label: str
    value: str
    reference: str
    meaning: str


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


def metric_rows(evaluation: Evaluation | None) -> list[MetricRow]:
    """Return every metric of the evaluation, in its order."""
    return [_metric_row(metric) for metric in evaluation.metrics.values()] if evaluation else []


def _metric_row(metric: MetricResult) -> MetricRow:
    parts = [f"{metric.description}; {metric.direction} is better"]
    if metric.value is not None:
        parts.append(f"{metric.estimator}; {plural(metric.samples, 'image')}")
    if metric.caveat and metric.value is not None:
        parts.append(metric.caveat.rstrip("."))
    if metric.reason:
        parts.append(f"{'no reference' if metric.value is not None else 'not measured'}: {metric.reason}")
    reference = ""
    if metric.reference is not None:
        reference = f"{quantity(metric.reference, metric.unit)} ({metric.reference_label})"
    return MetricRow(metric.label, quantity(metric.value, metric.unit), reference or DASH, "; ".join(parts))


def step_rows(steps: Sequence[StepRecord]) -> list[StepRow]:
    """Return one row per step, in the order of their first start; ``share`` is of the longest step's time."""
    seconds = step_seconds(steps)
    longest = max(seconds.values(), default=0.0) or 1.0
    return [_row([record for record in steps if record.step == name], seconds[name], longest) for name in seconds]


def _row(records: Sequence[StepRecord], seconds: float, longest: float) -> StepRow:
    return StepRow(
        name=records[0].step,
        groups=len(records),
        failed=any(record.status == FAILED for record in records),
        seconds=seconds,
        share=seconds / longest,
        facts=facts(_together([record.result or {} for record in records])),
        error=next((record.error for record in records if record.error), None),
    )


def _together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a step's result, or of several groups the sums of their whole numbers."""
    if len(results) == 1:
        return results[0]
    sums: dict[str, int] = {}
    for result in results:
        for name, value in result.items():
            if isinstance(value, int) and not isinstance(value, bool):
                sums[name] = sums.get(name, 0) + value
    return sums
