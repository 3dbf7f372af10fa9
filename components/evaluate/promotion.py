"""Whether a measured model replaces the champion, and why, in a sentence that a person reads."""

from __future__ import annotations

from typing import NamedTuple

from components.evaluate.config import PromotionConfig
from components.model.metric_results import Direction, MetricResult, Metrics


class PromotionDecision(NamedTuple):
    """Whether to publish, and the sentence that says why."""

    better: bool
    reason: str


def decide(config: PromotionConfig, candidate: Metrics, champion: Metrics | None) -> PromotionDecision:
    """Compare two models that were measured alike; a tie is not better.

    Args:
        config: Which metric decides, and what is required.
        candidate: Metrics of the new model.
        champion: Metrics of the champion, None if there is none.
    """
    for name, required in config.required.items():
        if problem := _falls_short(candidate[name], required):
            return PromotionDecision(False, f"{problem}, which promotion.required.{name} asks for.")
    metric = candidate[config.metric]
    if metric.value is None:
        return PromotionDecision(False, f"{metric.label} decides (promotion.metric), and it was not measured.")
    if champion is None:
        return PromotionDecision(True, f"There is no champion yet; {metric.label} is {metric.value:.4g}.")
    to_beat = champion[config.metric].value
    if to_beat is None:
        return PromotionDecision(True, f"{metric.label} is {metric.value:.4g}; the champion's was not measured.")
    return _compare(metric, metric.value, to_beat)


def _falls_short(metric: MetricResult, required: float) -> str:
    """Return what is wrong with a metric that is required to reach a value; empty if nothing is."""
    bound = "at least" if metric.direction == "higher" else "at most"
    if metric.value is None:
        return f"{metric.label} was not measured; it must be {bound} {required:g}"
    if _is_better(required, metric.value, metric.direction):
        return f"{metric.label} is {metric.value:.4g}; it must be {bound} {required:g}"
    return ""


def _compare(metric: MetricResult, value: float, to_beat: float) -> PromotionDecision:
    if value == to_beat:
        return PromotionDecision(False, f"{metric.label} is {value:.4g}, the same as the champion's: a tie.")
    # Nine digits if four would show two equal numbers.
    digits = ".4g" if f"{value:.4g}" != f"{to_beat:.4g}" else ".9g"
    numbers = f"{metric.label} is {value:{digits}}, the champion's is {to_beat:{digits}}"
    better = _is_better(value, to_beat, metric.direction)
    return PromotionDecision(better, f"{numbers}; {metric.direction} is better.")


def _is_better(value: float, other: float, direction: Direction) -> bool:
    return value > other if direction == "higher" else value < other
