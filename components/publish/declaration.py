"""How the pipeline runs the publish step: only if the model is better than the champion."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.publish.config import PublishConfig


def _run(step: StepRun) -> Result:
    from components.publish.publishing import publish

    config, model = setting(step.settings, "publish", PublishConfig), setting(step.settings, "name", str)
    return publish(config, model, step.run, step.inputs["base_model"], step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    return str(result["published"])


STEP = Step("publish", _run, _summary, loads_models=True)
