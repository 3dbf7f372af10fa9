"""How the pipeline runs the evaluate step: it draws and measures, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.evaluate.config import EvaluateConfig
from components.html import formatting

_METRICS = ("prompt_accuracy", "frechet_distance")


def _run(step: StepRun) -> Result:
    from components.evaluate.evaluation import evaluate

    config = setting(step.settings, "evaluate", EvaluateConfig)
    model = setting(step.settings, "name", str)
    key, base_model = step.inputs["encoding_key"], step.inputs["base_model"]
    return evaluate(config, model, step.source_id, key, base_model, step.run, step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    parts = []
    if result["prompt_accuracy"] is not None:
        parts.append(f"prompt accuracy {result['prompt_accuracy']:.3f}")
    if result["frechet_distance"] is not None:
        parts.append(f"Fréchet distance {formatting.number(result['frechet_distance'])}")
    better = "better" if result["better"] else "no better"
    return ", ".join([*parts, "measured before" if result["reused"] else better])


def _metrics(result: Result) -> Mapping[str, float]:
    return {name: result[name] for name in _METRICS if result.get(name) is not None}


STEP = Step("evaluate", _run, _summary, _metrics, loads_models=True, uses_gpu=lambda _settings: True)
