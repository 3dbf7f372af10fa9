"""What Kubeflow Pipelines tells of its objects, as plain typed records."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple


class Version(NamedTuple):
    """One immutable version of a pipeline."""

    pipeline_id: str
    id: str
    name: str
    description: str


class Task(NamedTuple):
    """One step of a run, as Kubeflow shows it."""

    name: str
    state: str
    started: datetime | None
    ended: datetime | None
    pods: tuple[str, ...]
    error: str


class Run(NamedTuple):
    """One run. Its tasks are only known when it was asked for alone."""

    id: str
    name: str
    state: str
    created: datetime | None
    finished: datetime | None
    parameters: Mapping[str, Any]
    error: str
    tasks: tuple[Task, ...]
    recurring_id: str


class Recurring(NamedTuple):
    """One recurring run, which the API can enable, disable and delete, but not change."""

    id: str
    name: str
    description: str
    enabled: bool
    cron: str
    parameters: Mapping[str, Any]
    created: datetime | None


class NewRecurring(NamedTuple):
    """What a recurring run is made of."""

    name: str
    description: str
    cron: str
    parameters: Mapping[str, Any]
    service_account: str


def run_of(found: Any) -> Run:
    """Return a run as kfp's model has it."""
    config = found.runtime_config
    details = found.run_details
    return Run(
        found.run_id,
        found.display_name or "",
        found.state or "PENDING",
        found.created_at,
        _moment(found.finished_at),
        (config.parameters if config is not None else None) or {},
        _message(found.error),
        tuple(_task(one) for one in (details.task_details if details is not None else None) or ()),
        found.recurring_run_id or "",
    )


def _task(found: Any) -> Task:
    pods = [found.pod_name, *(child.pod_name for child in found.child_tasks or ())]
    named = tuple(pod for pod in pods if pod)
    started, ended = _moment(found.start_time), _moment(found.end_time)
    return Task(found.display_name or "", found.state or "PENDING", started, ended, named, _message(found.error))


def _message(error: Any) -> str:
    return str(error.message) if error is not None and error.message else ""


def _moment(found: datetime | None) -> datetime | None:
    """Return a time; Kubeflow says 1970 where there is none yet."""
    return found if found is not None and found.year > 1970 else None


def recurring_of(found: Any) -> Recurring:
    """Return a recurring run as kfp's model has it."""
    cron = found.trigger.cron_schedule if found.trigger is not None else None
    config = found.runtime_config
    return Recurring(
        found.recurring_run_id,
        found.display_name or "",
        found.description or "",
        found.status == "ENABLED" if found.status else found.mode == "ENABLE",
        (cron.cron if cron is not None else "") or "",
        (config.parameters if config is not None else None) or {},
        found.created_at,
    )
