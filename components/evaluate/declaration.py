"""How the pipeline runs the evaluate step: it draws and measures, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.evaluate.config import EvaluateConfig
from components.evaluate.summary import summary


def _run(step: StepRun) -> Result:
    from components.evaluate.evaluation import evaluate

    config = setting(step.settings, "evaluate", EvaluateConfig)
    model = setting(step.settings, "name", str)
    dataset = (step.inputs["encoding_key"], step.inputs["dataset"])
    base_model = step.inputs["base_model"]
    return evaluate(config, model, step.source_id, *dataset, base_model, step.run, step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    return summary(result)


def _metrics(result: Result) -> Mapping[str, float]:
    return {name: metric["value"] for name, metric in result["metrics"].items() if metric["value"] is not None}


STEP = Step("evaluate", _run, _summary, _metrics, loads_models=True, uses_gpu=lambda _settings: True)
