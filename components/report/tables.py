"""The tables of the page: what was measured, and what each step did. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from components.html.formatting import DASH, count, facts, number, percent
from components.report.account import FAILED, step_seconds
from components.report.records import Evaluation, StepRecord

STATE_MEANING = {
    "pending": "no machine had been given yet; nothing was paid",
    "pulling": "machines start and fetch the image",
    "loading": "processes start; model, data and checkpoint are read",
    "useful": "optimizer steps that count",
    "saving": "training waits for a checkpoint",
    "validating": "the loss on held-out images is measured",
    "sampling": "sample images are drawn",
    "lost": "optimizer steps that had to be done again, and after a crash all time until it was noticed",
    "idle": "between attempts, shutting down",
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


class Measure(NamedTuple):
    """One number of the evaluation, its name, and what it says."""

    label: str
    value: str
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


def measures(evaluation: Evaluation | None) -> list[Measure]:
    """Return every number of the evaluation, those that the report knows first, and why others are not known."""
    if evaluation is None:
        return []
    found, unknown = evaluation.metrics, evaluation.unknown
    names = [name for name in MEASURES if name in found] + sorted(found.keys() - MEASURES.keys())
    reasons = [Measure(_label(name), DASH, reason) for name, reason in unknown.items() if name not in found]
    return [_measure(name, found[name]) for name in names] + reasons


def _measure(name: str, value: float) -> Measure:
    label, meaning = _label(name), MEASURES.get(name, ("", ""))[1]
    if 0 <= value <= 1 and any(word in name for word in _SHARES):
        return Measure(label, percent(value), meaning)
    return Measure(label, count(value) if value.is_integer() else number(value), meaning)


def _label(name: str) -> str:
    return MEASURES[name][0] if name in MEASURES else name.replace("_", " ")


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
