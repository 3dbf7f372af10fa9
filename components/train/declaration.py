"""How the pipeline runs training: its launcher starts it, in the step's own pod or on nodes of their own."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step
from components.html.formatting import number, plural


def _summary(result: Result, events: Mapping[str, Result]) -> str:
    steps = plural(result["step"], "step")
    if "training" not in events:
        return f"{steps}, trained before"
    training = events["training"]
    if result["step"] == training["steps"]:
        steps += f" ({number(training['epochs'])} epochs)"
    last = events.get("step", {}).get("loss")  # null if it was not finite
    loss = f", loss {last:.3f}" if last is not None else ""
    attempts = f", {result['attempts']} attempts" if result["attempts"] > 1 else ""
    return f"{steps}{loss}{attempts}"


STEP = Step("train", summary=_summary, loads_models=True, uses_gpu=lambda _settings: True, is_launched=True)
