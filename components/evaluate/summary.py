"""What an evaluation measured, in a few words for a terminal. Pure, and light to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from components.html.formatting import SPACE, count, quantity
from components.model.metric_results import parse_metrics


def summary(result: Mapping[str, Any]) -> str:
    """Return the values and the decision in one line.

    Args:
        result: What `components.evaluate.evaluation.evaluate` returned.
    """
    values = [
        f"{metric.label} {quantity(metric.value, metric.unit)}"
        for metric in parse_metrics(result["metrics"]).values()
        if metric.value is not None
    ]
    decision = "measured before" if result["reused"] else "better" if result["better"] else "not better"
    return ", ".join([*values, decision]).replace(SPACE, " ")


def metric_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each metric's label and its value, with what to read it against.

    Args:
        metrics: As ``evaluation.json`` and ``report.json`` hold them.
    """
    for metric in parse_metrics(metrics).values():
        if metric.value is None:
            yield metric.label, "not measured"
            continue
        notes = [f"{count(metric.samples)} images"]
        if metric.reference is not None:
            notes.append(f"{metric.reference_label}: {quantity(metric.reference, metric.unit)}")
        yield metric.label, f"{quantity(metric.value, metric.unit)} ({'; '.join(notes)})".replace(SPACE, " ")
