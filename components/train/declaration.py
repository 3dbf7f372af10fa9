"""How the pipeline runs training: its launcher starts it, in the step's own pod or on nodes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.command import Problem, Result, Step, StepRun, setting
from components.errors import ConfigError
from components.html.formatting import number, plural
from components.train.config import MetricsConfig


def _summary(result: Result, events: Mapping[str, Result]) -> str:
    steps = plural(result["step"], "step")
    if "training" not in events:
        return f"{steps}, trained before"
    training = events["training"]
    if result["step"] == training["steps"]:
        steps += f" ({number(training['epochs'])} epochs)"
    loss = _last_loss(events)
    attempts = f", {result['attempts']} attempts" if result["attempts"] > 1 else ""
    return f"{steps}{loss}{attempts}"


def _last_loss(events: Mapping[str, Result]) -> str:
    """Return the loss that a training ends with: that of the published weights, or else of the last steps."""
    for event, name in (("validation", "held-out loss"), ("step", "training loss")):
        loss = events.get(event, {}).get("loss")  # null if it was not finite
        if loss is not None:
            return f", {name} {loss:.3f}"
    return ""


def _check(step: StepRun) -> Iterator[Problem]:
    from components.train.metrics.trackers import check_installed

    try:
        check_installed(setting(step.settings, "train.metrics", MetricsConfig).trackers)
    except ConfigError as error:
        yield Problem("train.metrics.trackers", str(error), only_here=True)


STEP = Step(
    "train", summary=_summary, loads_models=True, uses_gpu=lambda _settings: True, is_launched=True, check=_check
)
