"""Runs on this machine as lines for a terminal that is 80 wide. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.html import formatting
from components.settings import flatten
from pipeline.local.runs import RunFacts
from pipeline.messages import count, duration, line

_WIDTH, _NAME, _LABEL = 80, 30, 38
# Numbers of report.json that runs are compared by, and what they are called.
_NUMBERS = {
    "images": "images",
    "steps": "steps",
    "validation_loss": "held-out loss",
    "validation_loss_best": "best held-out loss",
    "goodput": "goodput",
    "samples_per_second": "images per second",
    "usd": "cost in $",
    "published": "published",
}


def run_rows(runs: Sequence[RunFacts], workdir: str) -> Iterator[str]:
    """Yield a line per run, the one that was begun last first."""
    if not runs:
        yield f"{line(workdir)} has no runs; darkroom run starts one"
        return
    yield f"runs in {line(workdir)}"
    yield f"{'run':{_NAME}} {'state':8} {'steps':>13} {'trained':>13} {'cost':>9}"
    for one in sorted(runs, key=lambda one: -(one.started or 0.0)):
        cost = formatting.usd(one.usd) if one.usd else "–"
        took = duration(one.seconds) if one.seconds else "–"
        yield f"{cut(one.run, _NAME):{_NAME}} {one.state:8} {_steps(one):>13} {took:>13} {cost:>9}"


def fact_rows(facts: RunFacts, report: str | None) -> Iterator[str]:
    """Yield what is known of one run."""
    yield f"run         {line(facts.run)}"
    yield f"workdir     {line(facts.workdir)}"
    yield f"state       {facts.state}{f', {line(facts.holder)}' if facts.holder else ''}"
    if facts.started is not None:
        yield f"started     {formatting.moment(facts.started)}"
    yield f"training    {_training(facts)}"
    if facts.usd:
        yield f"cost        {formatting.usd(facts.usd)}"
    if facts.lineage:
        yield f"lineage     {line(facts.lineage)}"
    if facts.published:
        yield f"published   {line(facts.published)}"
    if facts.error:
        yield f"reason      {line(facts.error)}"
    if report is not None:
        yield f"report      {line(report)}"
    if (advice := _advice(facts)) is not None:
        yield f"next        {advice}"


def comparison(
    names: Sequence[str], configs: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, list[Any]]]:
    """Return the settings in which runs differ, and the numbers of their reports; a value per run."""
    flat = [flatten(config) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    settings = {key: values for key in keys if not _equal(values := [one.get(key) for one in flat])}
    numbers = {label: [report.get(key) for report in reports] for key, label in _NUMBERS.items()}
    for report in reports:
        for name, metric in (report.get("metrics") or {}).items():
            numbers[str(metric.get("label") or name)] = [_metric(other, name) for other in reports]
    return {"runs": {"name": list(names)}, "settings": settings, "numbers": numbers}


def comparison_rows(compared: Mapping[str, Mapping[str, Sequence[Any]]]) -> Iterator[str]:
    """Yield what `comparison` returned: what differs, and the numbers, a column per run."""
    names = compared["runs"]["name"]
    width = max(8, (_WIDTH - _LABEL) // len(names) - 1)
    yield _row("", [str(name) for name in names], width)
    for section in ("settings", "numbers"):
        yield section
        for label, values in compared[section].items():
            if any(value is not None for value in values):
                yield _row(f"  {label}", [_shown(value) for value in values], width)
    if not compared["settings"]:
        yield "  no setting differs"


def cut(text: str, width: int) -> str:
    """Return printable text of at most so many characters."""
    whole = line(text)
    return whole if len(whole) <= width else f"{whole[: width - 1]}…"


def _row(label: str, values: Sequence[str], width: int) -> str:
    return f"{cut(label, _LABEL):{_LABEL}} {' '.join(f'{cut(value, width):>{width}}' for value in values)}"


def _steps(facts: RunFacts) -> str:
    return f"{count(facts.step)}/{count(facts.steps)}" if facts.steps else count(facts.step)


def _training(facts: RunFacts) -> str:
    parts = [f"{_steps(facts)} steps"]
    if facts.saved_step != facts.step:
        parts.append(f"{count(facts.saved_step)} saved")
    if facts.loss is not None:
        parts.append(f"loss {facts.loss:.4g}")
    if facts.seconds:
        parts.append(duration(facts.seconds))
    return ", ".join(parts)


def _advice(facts: RunFacts) -> str | None:
    if facts.state == "running":
        return f"darkroom logs {facts.run} --follow, darkroom pause {facts.run}"
    if facts.state in ("stopped", "killed", "failed"):
        return f"darkroom resume {facts.run}"
    if facts.state == "done" and facts.steps:
        return f"darkroom run --continue {facts.run} --set train.steps={2 * facts.steps}"
    return None


def _metric(report: Mapping[str, Any], name: str) -> Any:
    metric = (report.get("metrics") or {}).get(name)
    return metric.get("value") if isinstance(metric, dict) else None


def _equal(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
