"""Which changes make the recurring runs in Kubeflow equal to their specifications (pure).

A recurring run cannot be changed, so one that differs is replaced: the new one is created disabled, the old one is
deleted, then the new one is enabled. At no time are two of them enabled, and if the API rejects the new one, nothing is
lost; if this is stopped half-way, the next time finishes it. A digest of each run's specification and its owner are at
the end of its description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from components.digests import digest
from components.errors import ConfigError
from components.html.formatting import one_line
from pipeline.kubeflow.cron import seconds_first
from pipeline.kubeflow.records import RecurringRun

# Owner of what a person sets with the command line.
BY_HAND = "command-line"
_MARK = re.compile(r"\[darkroom (?P<owner>\S+) (?P<digest>[0-9a-f]{64})\]\s*\Z")


class RecurringSpec(NamedTuple):
    """The specification of a recurring run.

    Attributes:
        name: Its name, which nothing else in the namespace has.
        cron: When it runs; six fields.
        parameters: The pipeline's parameters.
        version: Name of the pipeline's version that it uses, and no other.
        experiment: Experiment of its runs.
        service_account: Account of their pods.
        enabled: Whether it runs.
        owner: The release, or `BY_HAND`, that it belongs to.
    """

    name: str
    cron: str
    parameters: Mapping[str, Any]
    version: str
    experiment: str
    service_account: str
    enabled: bool
    owner: str

    @property
    def digest(self) -> str:
        """One digest for all that cannot be changed."""
        return digest([seconds_first(self.cron), dict(self.parameters), self.version, self.experiment,
                       self.service_account])  # fmt: skip

    @property
    def description(self) -> str:
        """What the dashboard shows of it."""
        recipe = str(self.parameters.get("recipe", ""))
        what = "a recipe of its own" if "\n" in recipe else f"recipe {one_line(recipe)[:100]}"
        return f"Runs {what} into {self.parameters.get('workdir', '')}. [darkroom {self.owner} {self.digest}]"


class ScheduleChange(NamedTuple):
    """One change; ``id`` is empty for the recurring run that was created just before."""

    do: Literal["keep", "create", "delete", "enable", "disable"]
    name: str
    id: str = ""


def owner_of(description: str) -> str | None:
    """Return whom a recurring run belongs to; None if it is not Darkroom's."""
    mark = _MARK.search(description)
    return mark["owner"] if mark is not None else None


def plan(
    current: Sequence[RecurringRun], specs: Sequence[RecurringSpec], owner: str, remove: bool
) -> list[ScheduleChange]:
    """Return the changes, in the order in which they are to be made.

    Args:
        current: All recurring runs of the namespace.
        specs: What the owner's recurring runs are to be.
        owner: Whom they belong to.
        remove: Whether to delete the owner's recurring runs that are not specified.

    Raises:
        ConfigError: If a recurring run of the same name belongs to somebody else.
    """
    changes: list[ScheduleChange] = []
    for spec in specs:
        changes += _changes_for(spec, [run for run in current if run.name == spec.name])
    names = {spec.name for spec in specs}
    others = [run for run in current if run.name not in names and owner_of(run.description) == owner]
    return changes + [ScheduleChange("delete", run.name, run.id) for run in others if remove]


def _changes_for(spec: RecurringSpec, current: Sequence[RecurringRun]) -> list[ScheduleChange]:
    """Return the changes for one specification, given the recurring runs that have its name."""
    for run in current:
        _check_owner(run, spec)
    equal = [run for run in current if _has_digest(run, spec.digest)]
    # If a replacement was stopped half-way there may be several: keep the one that runs.
    kept = next((run for run in equal if run.enabled), equal[0] if equal else None)
    deletions = [ScheduleChange("delete", run.name, run.id) for run in current if run is not kept]
    if kept is None:
        enabling = [ScheduleChange("enable", spec.name)] if spec.enabled else []
        return [ScheduleChange("create", spec.name), *deletions, *enabling]
    if kept.enabled == spec.enabled:
        return [*deletions, ScheduleChange("keep", spec.name, kept.id)]
    return [*deletions, ScheduleChange("enable" if spec.enabled else "disable", spec.name, kept.id)]


def _check_owner(run: RecurringRun, spec: RecurringSpec) -> None:
    owner = owner_of(run.description)
    if owner == spec.owner:
        return
    whose = "was not made by darkroom" if owner is None else f"belongs to {owner}"
    how = "in the dashboard" if owner is None else f"(darkroom schedule rm {spec.name})"
    raise ConfigError(
        f"the recurring run {spec.name} ({run.id}) {whose}; choose another name, or remove it first {how}"
    )


def _has_digest(run: RecurringRun, expected: str) -> bool:
    mark = _MARK.search(run.description)
    return mark is not None and mark["digest"] == expected
