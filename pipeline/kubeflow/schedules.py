"""What has to be done for the recurring runs in Kubeflow to be those that are wanted (pure).

A recurring run cannot be changed, so one that differs is replaced: the new one is created disabled, the old one is
deleted, then the new one is enabled. At no time are two of them enabled, and one that the API refuses costs nothing;
stopped half-way, the next time finishes it. What each is made of, and for whom, stands at the end of its description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from components.digests import digest
from components.errors import ConfigError
from components.html.formatting import one_line
from pipeline.kubeflow.cron import seconds_first

# Owner of what a person sets with the command line.
BY_HAND = "command-line"
_MARK = re.compile(r"\[darkroom (?P<owner>\S+) (?P<digest>[0-9a-f]{64})\]\s*\Z")


class Wanted(NamedTuple):
    """A recurring run as it shall be.

    Attributes:
        name: Its name, which nothing else in the namespace has.
        cron: When it runs; six fields.
        parameters: The pipeline's parameters.
        version: Name of the pipeline's version that it is pinned to.
        experiment: Experiment of its runs.
        service_account: Account of their pods.
        enabled: Whether it runs.
        owner: Who wants it.
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
    def made_of(self) -> str:
        """One digest for all that cannot be changed."""
        return digest([seconds_first(self.cron), dict(self.parameters), self.version, self.experiment,
                       self.service_account])  # fmt: skip

    @property
    def description(self) -> str:
        """What the dashboard shows of it."""
        recipe = str(self.parameters.get("recipe", ""))
        what = "a recipe of its own" if "\n" in recipe else f"recipe {one_line(recipe)[:100]}"
        return f"Runs {what} into {self.parameters.get('workdir', '')}. [darkroom {self.owner} {self.made_of}]"


class Found(NamedTuple):
    """A recurring run as it is."""

    id: str
    name: str
    description: str
    enabled: bool


class Action(NamedTuple):
    """One thing to do; ``id`` is empty for the one that was created just before."""

    do: Literal["keep", "create", "delete", "enable", "disable"]
    name: str
    id: str = ""


def owner_of(description: str) -> str | None:
    """Return for whom a recurring run was made; None where it is not Darkroom's."""
    mark = _MARK.search(description)
    return mark["owner"] if mark is not None else None


def plan(current: Sequence[Found], wanted: Sequence[Wanted], owner: str, remove: bool) -> list[Action]:
    """Return what to do, in this order.

    Args:
        current: All recurring runs of the namespace.
        wanted: Those of an owner that shall be.
        owner: Who wants them.
        remove: Delete the owner's others.

    Raises:
        ConfigError: Where a name is taken by a recurring run that belongs to somebody else.
    """
    actions: list[Action] = []
    for one in wanted:
        actions += _bring_about(one, [found for found in current if found.name == one.name])
    names = {one.name for one in wanted}
    gone = [found for found in current if found.name not in names and owner_of(found.description) == owner]
    return actions + [Action("delete", found.name, found.id) for found in gone if remove]


def _bring_about(wanted: Wanted, current: Sequence[Found]) -> list[Action]:
    for found in current:
        owner = owner_of(found.description)
        if owner != wanted.owner:
            whose = "was not made by darkroom" if owner is None else f"belongs to {owner}"
            how = "in the dashboard" if owner is None else f"(darkroom schedule rm {wanted.name})"
            raise ConfigError(
                f"the recurring run {wanted.name} ({found.id}) {whose}; choose another name, or remove it first {how}"
            )
    same = [found for found in current if _is_made_of(found, wanted.made_of)]
    # Where a replacement was stopped half-way there may be several: the one that runs is the one to keep.
    kept = next((found for found in same if found.enabled), same[0] if same else None)
    others = [Action("delete", found.name, found.id) for found in current if found is not kept]
    if kept is None:
        switched = [Action("enable", wanted.name)] if wanted.enabled else []
        return [Action("create", wanted.name), *others, *switched]
    if kept.enabled == wanted.enabled:
        return [*others, Action("keep", wanted.name, kept.id)]
    return [*others, Action("enable" if wanted.enabled else "disable", wanted.name, kept.id)]


def _is_made_of(found: Found, made_of: str) -> bool:
    mark = _MARK.search(found.description)
    return mark is not None and mark["digest"] == made_of
