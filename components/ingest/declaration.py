"""How the pipeline runs ingest: it finds the images and divides them into groups."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.html.formatting import count, plural
from components.ingest.config import IngestConfig


def _run(step: StepRun) -> Result:
    from components.ingest.ingest import ingest

    result = ingest(setting(step.settings, "ingest", IngestConfig), step.workdir, step.progress)
    # What the run will caption; so `darkroom dataset gc` knows that its captions are used, however far it gets.
    return {**result, "caption_set": step.caption_set}


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    text = f"{plural(result['images'], 'image')}, {count(result['rejected'])} rejected"
    if result["new"] >= result["images"]:
        return text
    changes = "".join(f", {count(result[name])} {name}" for name in ("changed", "gone") if result[name])
    return f"{text}, {count(result['new'])} new{changes}"


STEP = Step("ingest", _run, _summary)
