"""How the pipeline runs the report step: last, however the other steps ended."""

from __future__ import annotations

from collections.abc import Mapping

from components.command import Result, Step, StepRun, setting
from components.report.config import ReportConfig


def _run(step: StepRun) -> Result:
    from components.report.reporting import report

    config = setting(step.settings, "report", ReportConfig)
    return report(config, step.run, step.inputs["status"], step.workdir, step.progress)


def _metrics(result: Result) -> Mapping[str, float]:
    metrics: Mapping[str, float] = result["metrics"]
    return metrics


STEP = Step("report", _run, metrics=_metrics)
