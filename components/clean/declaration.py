"""How the pipeline runs the clean step: once for all groups, after all of them have captions."""

from __future__ import annotations

from collections.abc import Mapping

from components.clean.config import CleanConfig
from components.command import Result, Step, StepRun, setting
from components.html.formatting import count
from components.image.filters import FilterConfig
from components.image.records import read_manifest


def _run(step: StepRun) -> Result:
    from components.clean.cleaning import clean

    config = setting(step.settings, "clean", CleanConfig)
    filters = setting(step.settings, "caption.filters", FilterConfig)
    groups = read_manifest(step.workdir, step.source_id).groups
    key = step.inputs["encoding_key"]
    return clean(config, filters, step.source_id, groups, key, step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    if result["reused"]:
        return f"{count(result['kept'])} kept, nothing has changed"
    return f"{count(result['kept'])} kept, {count(result['rejected_here'])} rejected"


STEP = Step("clean", _run, _summary)
