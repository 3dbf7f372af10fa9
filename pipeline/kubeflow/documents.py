"""Runs on a cluster as JSON documents, for ``--json``: keys that scripts may rely on. Times are ISO 8601, in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from components.storage.base import Storage
from pipeline.kubeflow.exporter import read_facts
from pipeline.kubeflow.records import RecurringRun, Run
from pipeline.kubeflow.schedules import owner_of

STATUS_KEYS: Mapping[str, str] = {
    "id": "Kubeflow's id of the run",
    "name": "its name in the dashboard",
    "state": "Kubeflow's word, such as RUNNING, SUCCEEDED or FAILED",
    "created": "when it was submitted",
    "finished": "when it ended; null: not yet",
    "error": "Kubeflow's message; empty for none",
    "dashboard": "address of its page",
    "parameters": "what it was submitted with",
    "tasks": "with RUN: name, state, started, ended and error of each",
    "training": "with RUN: step, steps, loss, samples_per_second, spent_usd and others, as far as known; or error",
}


def run_document(run: Run, link: str) -> dict[str, Any]:
    """Return one run as JSON."""
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "created": _time(run.created),
        "finished": _time(run.finished),
        "error": run.error,
        "dashboard": link,
        "parameters": dict(run.parameters),
        "tasks": [
            {
                "name": task.name,
                "state": task.state,
                "started": _time(task.started),
                "ended": _time(task.ended),
                "error": task.error,
            }
            for task in run.tasks
        ],
    }


def training_document(folder: Storage) -> dict[str, Any]:
    """Return how training gets on, from the run's own records, as JSON.

    Raises:
        DarkroomError: If they cannot be read.
    """
    return dict(read_facts(folder).values)


def recurring_document(one: RecurringRun) -> dict[str, Any]:
    """Return one recurring run as JSON."""
    return {
        "id": one.id,
        "name": one.name,
        "cron": one.cron,
        "enabled": one.enabled,
        "owner": owner_of(one.description),
        "parameters": dict(one.parameters),
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()
