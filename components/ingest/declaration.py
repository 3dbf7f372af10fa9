"""How the pipeline runs ingest: it finds the images and divides them into groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.command import Result, Step, StepRun, setting
from components.html.formatting import count, plural
from components.ingest.config import IngestConfig

# Kinds of what is counted that stand in the line of the step; the data report has more.
MOST_SHOWN = 3
_WIDTH = 56  # of a line of 80 columns, less the step's name and time


def _run(step: StepRun) -> Result:
    from components.ingest.union import ingest_sources

    result = ingest_sources(setting(step.settings, "ingest", IngestConfig), step.workdir, step.progress)
    # What the run will caption; so `darkroom dataset gc` knows that its captions are used, however far it gets.
    return {**result, "caption_set": step.caption_set}


def _summary(result: Result, _events: Mapping[str, Result]) -> str:
    sources = result.get("sources", ())
    of = f" of {len(sources)} sources" if sources else ""
    text = f"{plural(result['images'], 'image')}{of}, {count(result['rejected'])} rejected"
    news = ""
    if result["new"] < result["images"]:
        changes = "".join(f", {count(result[name])} {name}" for name in ("changed", "gone") if result[name])
        news = f", {count(result['new'])} new{changes}"
    text += _listed(result.get("reasons", {}), " (", ")", _WIDTH - len(text + news)) + news
    # What does not fit into a terminal's line is in the data report.
    for part in _others(result, _WIDTH - len(text)):
        text += part if len(text) + len(part) <= _WIDTH else ""
    return text


def _others(result: Result, width: int) -> Iterator[str]:
    """Yield what else was there, the most important first."""
    others = result.get("other_files", {})
    if others:
        text = f", {plural(sum(others.values()), 'other file')}"
        yield text + _listed(others, ": ", "", width - len(text))
    if result.get("masks"):
        yield f", {count(result['masks'])} with a mask"
    if result.get("alpha"):
        yield f", {count(result['alpha'])} transparent, put on white"


def _listed(counts: Mapping[str, int], before: str, after: str, width: int) -> str:
    """Return as many of the most frequent kinds as fit, with their numbers."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{kind} {count(number)}" for kind, number in ordered]
    for shown in range(min(MOST_SHOWN, len(kinds)), 0, -1):
        more = ", …" if len(kinds) > shown else ""
        text = f"{before}{', '.join(kinds[:shown])}{more}{after}"
        if len(text) <= width:
            return text
    return ""


STEP = Step("ingest", _run, _summary, lists_images=True)
