"""The objects of Kubeflow Pipelines as plain typed records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple


class PipelineVersion(NamedTuple):
    """One immutable version of a pipeline.

    Attributes:
        pipeline_id: The pipeline.
        id: Kubeflow's id of it.
        name: Digest of the compiled pipeline.
        description: What the dashboard shows of it.
        pods: What its pods ask for, as `pipeline.launch.checks.demands` writes it down; empty if it does not say.
        cluster: Settings that its runs take from the release.
    """

    pipeline_id: str
    id: str
    name: str
    description: str
    pods: Mapping[str, Any]
    cluster: tuple[str, ...]


class Task(NamedTuple):
    """One step of a run, as Kubeflow shows it."""

    name: str
    state: str
    started: datetime | None
    ended: datetime | None
    pods: tuple[str, ...]
    error: str


class Run(NamedTuple):
    """One run. It has tasks only if it was read alone, not in a list."""

    id: str
    name: str
    state: str
    created: datetime | None
    finished: datetime | None
    parameters: Mapping[str, Any]
    error: str
    tasks: tuple[Task, ...]
    recurring_id: str


class RecurringRun(NamedTuple):
    """One recurring run, which the API can enable, disable and delete, but not change."""

    id: str
    name: str
    description: str
    enabled: bool
    cron: str
    parameters: Mapping[str, Any]
    created: datetime | None


class NewRecurringRun(NamedTuple):
    """What a recurring run is created with."""

    name: str
    description: str
    cron: str
    parameters: Mapping[str, Any]
    service_account: str


def version_of(model: Any) -> PipelineVersion:
    """Return a version from kfp's model of it, and what is compiled into its first step."""
    spec = model.pipeline_spec or {}
    spec = spec.get("pipeline_spec", spec)
    graphs = [spec.get("root", {}), *spec.get("components", {}).values()]
    tasks = [graph.get("dag", {}).get("tasks", {}).get("configure", {}) for graph in graphs]
    given: Mapping[str, Any] = next((task["inputs"]["parameters"] for task in tasks if task), {})
    pods, cluster = (given.get(name, {}).get("runtimeValue", {}).get("constant") for name in ("pods", "cluster"))
    names = (model.pipeline_id, model.pipeline_version_id, model.display_name, model.description or "")
    return PipelineVersion(*names, pods or {}, tuple(cluster or ()))


def run_of(model: Any) -> Run:
    """Return a run from kfp's model of it."""
    config = model.runtime_config
    details = model.run_details
    return Run(
        model.run_id,
        model.display_name or "",
        model.state or "PENDING",
        model.created_at,
        _time_of(model.finished_at),
        (config.parameters if config is not None else None) or {},
        _message(model.error),
        tuple(_task(task) for task in (details.task_details if details is not None else None) or ()),
        model.recurring_run_id or "",
    )


def _task(model: Any) -> Task:
    names = [model.pod_name, *(child.pod_name for child in model.child_tasks or ())]
    pods = tuple(name for name in names if name)
    started, ended = _time_of(model.start_time), _time_of(model.end_time)
    return Task(model.display_name or "", model.state or "PENDING", started, ended, pods, _message(model.error))


def _message(error: Any) -> str:
    return str(error.message) if error is not None and error.message else ""


def _time_of(value: datetime | None) -> datetime | None:
    """Return a time; Kubeflow writes 1970 if there is none yet."""
    return value if value is not None and value.year > 1970 else None


def recurring_run_of(model: Any) -> RecurringRun:
    """Return a recurring run from kfp's model of it."""
    cron = model.trigger.cron_schedule if model.trigger is not None else None
    config = model.runtime_config
    return RecurringRun(
        model.recurring_run_id,
        model.display_name or "",
        model.description or "",
        model.status == "ENABLED" if model.status else model.mode == "ENABLE",
        (cron.cron if cron is not None else "") or "",
        (config.parameters if config is not None else None) or {},
        model.created_at,
    )
