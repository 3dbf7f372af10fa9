"""How the pipeline runs the index step: once for all groups; it commits the dataset."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.html.formatting import count, plural
from components.image.records import read_manifest
from components.index.config import IndexConfig


def _run(step: StepRun) -> Result:
    from components.index.build import index

    config = setting(step.settings, "index", IndexConfig)
    groups = read_manifest(step.workdir, step.source_id).groups
    names = (step.source_id, groups, step.caption_set, step.inputs["encoding_key"])
    return index(config, *names, step.workdir, step.progress)


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    return f"{plural(result['images'], 'image')}, {count(result['held_out'])} of them held out"


STEP = Step("index", _run, _summary)
