"""How the pipeline runs ingest: it finds the images and divides them into groups."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.html.formatting import count, plural
from components.ingest.config import IngestConfig

# Kinds of what is counted that stand in the line of the step; the data report has more.
MOST_SHOWN = 3


def _run(step: StepRun) -> Result:
    from components.ingest.ingest import ingest

    result = ingest(setting(step.settings, "ingest", IngestConfig), step.workdir, step.progress)
    # What the run will caption; so `darkroom dataset gc` knows that its captions are used, however far it gets.
    return {**result, "caption_set": step.caption_set}


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    text = f"{plural(result['images'], 'image')}, {count(result['rejected'])} rejected"
    text += _listed(result.get("reasons", {}), " (", ")")
    if result["new"] < result["images"]:
        changes = "".join(f", {count(result[name])} {name}" for name in ("changed", "gone") if result[name])
        text += f", {count(result['new'])} new{changes}"
    if result.get("masks"):
        text += f", {count(result['masks'])} with a mask"
    if result.get("alpha"):
        text += f", {count(result['alpha'])} with transparency (put on white)"
    others = result.get("other_files", {})
    return f"{text}, {plural(sum(others.values()), 'other file')}{_listed(others, ': ')}" if others else text


def _listed(counts: Mapping[str, int], before: str, after: str = "") -> str:
    """Return the most frequent of some kinds with their numbers."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{kind} {count(number)}" for kind, number in ordered]
    more = ", …" if len(kinds) > MOST_SHOWN else ""
    return f"{before}{', '.join(kinds[:MOST_SHOWN])}{more}{after}" if kinds else ""


STEP = Step("ingest", _run, _summary, lists_images=True)
