"""``darkroom deploy``, and what other verbs share with it: upload the pipeline, reconcile the recurring runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import ConfigError
from pipeline.config import resolve
from pipeline.kubeflow.client import Kubeflow
from pipeline.kubeflow.compile import compile_to
from pipeline.kubeflow.records import NewRecurring, Version
from pipeline.kubeflow.release import Deployment, Schedule
from pipeline.kubeflow.schedules import Action, Found, Wanted, plan
from pipeline.recipe import portable

Say = Callable[[str], None]

_RELEASE = re.compile(r"\[release (?P<account>[-.a-z0-9]+)\]\s*\Z")
_DESCRIPTION = "Train Stable Diffusion on a place full of images, and publish it."


def check(deployment: Deployment) -> None:
    """Find what is wrong with the runs of a deployment, before anything is done.

    Raises:
        ConfigError: For the first recurring run that could not run.
    """
    resolve(deployment.recipe, deployment.cluster)
    for schedule in deployment.schedules:
        try:
            resolve(schedule.recipe, [*deployment.cluster, *schedule.overrides], schedule.source)
            check_workdir(schedule.workdir)
        except ConfigError as error:
            raise ConfigError(f"schedules, {schedule.name}: {error}") from None


def check_workdir(workdir: str) -> None:
    """Refuse a workdir that only one machine has.

    Raises:
        ConfigError: Where it is not in a store.
    """
    if not workdir.startswith("s3://"):
        raise ConfigError(f"workdir {workdir!r}: each step runs on a machine of its own; expected s3://bucket/prefix")


def deploy(deployment: Deployment, connect: Callable[[], Kubeflow], say: Say) -> None:
    """Bring about what a deployment says; doing it again changes nothing.

    Args:
        deployment: What shall be.
        connect: Connects to Kubeflow, once all that can be checked without it is in order.
        say: Told what was done.

    Raises:
        ConfigError: Where the deployment is wrong, or Kubeflow refuses it.
        KubeflowAway: Where Kubeflow does not answer in time.
    """
    if not deployment.withdraw:
        check(deployment)
    kubeflow = connect()
    versions: dict[str, Version] = {}
    wanted = []
    if not deployment.withdraw:
        pipeline_id = kubeflow.make_pipeline(deployment.pipeline, _DESCRIPTION)
        shown = upload(kubeflow, pipeline_id, deployment, deployment.recipe, (), say, shown=True)
        versions[shown.name] = shown
        for schedule in deployment.schedules:
            version = upload(kubeflow, pipeline_id, deployment, schedule.recipe, schedule.overrides, say)
            versions[version.name] = version
            wanted.append(_wanted(schedule, deployment, version))
    reconcile(kubeflow, wanted, versions, deployment.owner, True, say)


def upload(
    kubeflow: Kubeflow,
    pipeline_id: str,
    deployment: Deployment,
    recipe: str,
    overrides: Sequence[str],
    say: Say,
    shown: bool = False,
) -> Version:
    """Return the version of the pipeline whose steps ask for a run's machines, uploaded where it is new.

    Args:
        kubeflow: Where.
        pipeline_id: The pipeline.
        deployment: The release.
        recipe: The run.
        overrides: Settings of the run.
        say: Told what is uploaded.
        shown: Whether it is the one of the release, that runs take which do not bring their own.
    """
    with tempfile.TemporaryDirectory(prefix="darkroom-ir-") as folder:
        file = Path(folder) / "darkroom.yaml"
        name = compile_to(file, deployment, recipe, overrides)
        known = {version.name: version for version in kubeflow.versions(pipeline_id)}
        if name in known:
            return known[name]
        about = f"Machines of {_shown(recipe)}; {deployment.image}"
        about += f" [release {deployment.service_account or '-'}]" if shown else ""
        made = kubeflow.upload(file, pipeline_id, name, about)
    say(f"{deployment.pipeline}: uploaded version {name}")
    return made


def newest(kubeflow: Kubeflow, pipeline: str) -> tuple[Version, str]:
    """Return the newest version that a release uploaded, and the account that its runs have.

    Raises:
        ConfigError: Where there is none.
    """
    known = kubeflow.pipeline(pipeline)
    for version in kubeflow.versions(known) if known is not None else ():
        if release := _RELEASE.search(version.description):
            return version, release["account"].strip("-")
    raise ConfigError(
        f"Kubeflow has no pipeline {pipeline!r} of a release yet; install the chart, or give its deploy.yaml (--file)"
    )


def reconcile(
    kubeflow: Kubeflow,
    wanted: Sequence[Wanted],
    versions: Mapping[str, Version],
    owner: str,
    remove: bool,
    say: Say,
) -> None:
    """Make the recurring runs in Kubeflow those that are wanted; see `pipeline.kubeflow.schedules`."""
    current = [Found(one.id, one.name, one.description, one.enabled) for one in kubeflow.recurring()]
    by_name = {one.name: one for one in wanted}
    made = ""
    for action in plan(current, wanted, owner, remove):
        if action.do == "create":
            made = _create(kubeflow, by_name[action.name], versions)
        else:
            _carry_out(kubeflow, action, action.id or made)
        say(f"{action.name}: {_DONE[action.do]}")


_DONE = {
    "keep": "as it should be",
    "create": "created, pinned to its version",
    "delete": "removed one",
    "enable": "enabled",
    "disable": "paused",
}


def _create(kubeflow: Kubeflow, wanted: Wanted, versions: Mapping[str, Version]) -> str:
    experiment_id = kubeflow.experiment(wanted.experiment)
    new = NewRecurring(wanted.name, wanted.description, wanted.cron, wanted.parameters, wanted.service_account)
    return kubeflow.create_recurring(new, versions[wanted.version], experiment_id)


def _carry_out(kubeflow: Kubeflow, action: Action, recurring_id: str) -> None:
    if action.do == "delete":
        kubeflow.delete_recurring(recurring_id)
    elif action.do != "keep":
        kubeflow.switch_recurring(recurring_id, action.do == "enable")


def _wanted(schedule: Schedule, deployment: Deployment, version: Version) -> Wanted:
    return Wanted(
        schedule.name,
        schedule.cron,
        parameters(schedule.recipe, schedule.workdir, schedule.source, schedule.overrides),
        version.name,
        deployment.experiment,
        deployment.service_account,
        schedule.enabled,
        deployment.owner,
    )


def parameters(recipe: str, workdir: str, source: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the pipeline's parameters for a run; the cluster's own are the version's defaults."""
    return {"recipe": portable(recipe), "workdir": workdir, "source": source, "overrides": list(overrides)}


def _shown(recipe: str) -> str:
    return "a recipe of its own" if "\n" in recipe else f"recipe {recipe}"
