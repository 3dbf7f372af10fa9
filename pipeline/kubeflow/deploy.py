"""``darkroom deploy``, and what other verbs share with it: upload the pipeline, update the recurring runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from components.errors import ConfigError
from components.image.sources import EXAMPLE
from components.storage.scratch import scratch_folder
from pipeline.config import NO_OVERRIDES, SOURCE_OF_RECIPE, RunConfig, resolve
from pipeline.dag import PURPOSE
from pipeline.kubeflow.client import Kubeflow
from pipeline.kubeflow.compile import compile_to, describe, label
from pipeline.kubeflow.records import NewRecurringRun, PipelineVersion
from pipeline.kubeflow.release import Deployment, Schedule
from pipeline.kubeflow.schedules import RecurringSpec, ScheduleChange, plan
from pipeline.launch.checks.demands import check_pods
from pipeline.messages import PrintLine
from pipeline.recipe import portable

_RELEASE = re.compile(r"\[release (?P<account>[-.a-z0-9]+)\]\s*\Z")


def check(deployment: Deployment) -> None:
    """Check the runs of a deployment before anything is changed.

    Raises:
        ConfigError: For the first recurring run with wrong settings.
    """
    check_places(resolve(deployment.recipe, deployment.cluster))
    for schedule in deployment.schedules:
        try:
            check_places(resolve(schedule.recipe, [*deployment.cluster, *schedule.overrides], schedule.source))
            check_workdir(schedule.workdir)
        except ConfigError as error:
            raise ConfigError(f"schedules, {schedule.name}: {error}") from None


def check_workdir(workdir: str) -> None:
    """Check that a workdir is one that every node can reach.

    Raises:
        ConfigError: If it is not in an object store.
    """
    if not workdir.startswith("s3://"):
        raise ConfigError(f"workdir {workdir!r}: each step runs on a node of its own; expected s3://bucket/prefix")


def check_places(settings: RunConfig) -> None:
    """Check that the images are where every node can reach them.

    Raises:
        ConfigError: If they are in a local folder, which the steps' pods do not have.
    """
    for place in settings.ingest.places:
        if not place.startswith(("s3://", EXAMPLE)):
            raise ConfigError(
                f"source {place!r} of {settings.name}: each step runs on a node of its own; expected "
                "s3://bucket/prefix, or example:digits (--source, ingest.source)"
            )


def deploy(deployment: Deployment, connect: Callable[[], Kubeflow], print_line: PrintLine) -> None:
    """Make Kubeflow's pipeline and recurring runs what a deployment says; doing it again changes nothing.

    Args:
        deployment: The release's pipeline and recurring runs.
        connect: Connects to Kubeflow, after everything that can be checked without it.
        print_line: Shows a line for each change.

    Raises:
        ConfigError: If the deployment is wrong, or Kubeflow rejects it.
        KubeflowAway: If Kubeflow does not answer in time.
    """
    if not deployment.withdraw:
        check(deployment)
    kubeflow = connect()
    versions: dict[str, PipelineVersion] = {}
    specs = []
    if not deployment.withdraw:
        pipeline_id = kubeflow.make_pipeline(deployment.pipeline, f"{PURPOSE} Each version says what to type.")
        default = upload(kubeflow, pipeline_id, deployment, deployment.recipe, (), print_line, is_default=True)
        versions[default.name] = default
        for schedule in deployment.schedules:
            version = upload(kubeflow, pipeline_id, deployment, schedule.recipe, schedule.overrides, print_line)
            versions[version.name] = version
            specs.append(_spec(schedule, deployment, version))
    reconcile(kubeflow, specs, versions, deployment.owner, True, print_line)


def upload(
    kubeflow: Kubeflow,
    pipeline_id: str,
    deployment: Deployment,
    recipe: str,
    overrides: Sequence[str],
    print_line: PrintLine,
    is_default: bool = False,
) -> PipelineVersion:
    """Return the version of the pipeline whose pods are those of a run, uploaded if it is new.

    Args:
        kubeflow: The connection.
        pipeline_id: The pipeline.
        deployment: The release.
        recipe: The run's recipe.
        overrides: Settings of the run.
        print_line: Shows a line if a version is uploaded.
        is_default: Whether it is the version of the release, for runs that have none of their own.
    """
    with scratch_folder("ir") as folder:
        file = folder / "darkroom.yaml"
        name = compile_to(file, deployment, recipe, overrides)
        existing = {version.name: version for version in kubeflow.versions(pipeline_id)}
        if name in existing:
            return existing[name]
        description = f"Pods of {label(recipe)}; {deployment.image}\n\n{describe(deployment, recipe, PURPOSE)}\n\n"
        description += f"[release {deployment.service_account or '-'}]" if is_default else ""
        version = kubeflow.upload(file, pipeline_id, name, description)
    print_line(f"{deployment.pipeline}: uploaded version {name}")
    return version


class RunRequest(NamedTuple):
    """What a person asks for: a recipe and what is to be otherwise."""

    recipe: str
    source: str
    overrides: Sequence[str]

    def settings(self, cluster: Sequence[str]) -> RunConfig:
        """Return the settings of the run on a cluster.

        Raises:
            ConfigError: If they are wrong.
        """
        return resolve(self.recipe, [*cluster, *self.overrides], self.source)


def version_for(
    kubeflow: Kubeflow, pipeline: str, request: RunRequest, print_line: PrintLine
) -> tuple[PipelineVersion, str]:
    """Return a version of the newest release whose pods are enough for a run, and the service account of its runs.

    The release's own comes first, then those that were uploaded with the same image for other recipes.

    Raises:
        ConfigError: If there is no release, or none of its versions has such pods.
    """
    pipeline_id = kubeflow.pipeline(pipeline)
    versions = kubeflow.versions(pipeline_id) if pipeline_id is not None else []
    marked = ((version, _RELEASE.search(version.description)) for version in versions)
    own, account = next(((version, mark["account"].strip("-")) for version, mark in marked if mark), (None, ""))
    if own is None:
        raise ConfigError(
            f"Kubeflow has no pipeline {pipeline!r} of a release yet; install the chart, or give its deploy.yaml "
            "(--file)"
        )
    if not own.pods:
        print_line(f"warning: version {own.name} does not say what its pods have; a newer release of the chart does")
        return own, account
    try:
        check_pods(own.pods, request.settings(own.cluster))
    except ConfigError:
        others = (one for one in versions if one.pods and one is not own and _image(one) == _image(own))
        if (other := next((one for one in others if _is_enough(one, request)), None)) is None:
            raise
        return other, account
    return own, account


def _is_enough(version: PipelineVersion, request: RunRequest) -> bool:
    try:
        check_pods(version.pods, request.settings(version.cluster))
    except ConfigError:
        return False
    return True


def _image(version: PipelineVersion) -> str:
    """Return the image of a version that `upload` made; empty if it was made otherwise."""
    first = version.description.partition("\n")[0]
    return first.rpartition("; ")[2] if first.startswith("Pods of ") else ""


def reconcile(
    kubeflow: Kubeflow,
    specs: Sequence[RecurringSpec],
    versions: Mapping[str, PipelineVersion],
    owner: str,
    remove: bool,
    print_line: PrintLine,
) -> None:
    """Make the recurring runs in Kubeflow what their specifications say; see `pipeline.kubeflow.schedules`."""
    spec_of = {spec.name: spec for spec in specs}
    created = ""
    for change in plan(kubeflow.recurring(), specs, owner, remove):
        if change.do == "create":
            created = _create(kubeflow, spec_of[change.name], versions)
        else:
            _apply(kubeflow, change, change.id or created)
        print_line(f"{change.name}: {_RESULTS[change.do]}")


_RESULTS = {
    "keep": "as it should be",
    "create": "created, pinned to its version",
    "delete": "removed one",
    "enable": "enabled",
    "disable": "paused",
}


def _create(kubeflow: Kubeflow, spec: RecurringSpec, versions: Mapping[str, PipelineVersion]) -> str:
    experiment_id = kubeflow.experiment(spec.experiment)
    new = NewRecurringRun(spec.name, spec.description, spec.cron, spec.parameters, spec.service_account)
    return kubeflow.create_recurring(new, versions[spec.version], experiment_id)


def _apply(kubeflow: Kubeflow, change: ScheduleChange, recurring_id: str) -> None:
    if change.do == "delete":
        kubeflow.delete_recurring(recurring_id)
    elif change.do != "keep":
        kubeflow.switch_recurring(recurring_id, change.do == "enable")


def _spec(schedule: Schedule, deployment: Deployment, version: PipelineVersion) -> RecurringSpec:
    return RecurringSpec(
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
    """Return the pipeline's parameters for a run, none of them empty but for a workdir that is left to the version."""
    given = {"recipe": portable(recipe), "workdir": workdir, "source": source or SOURCE_OF_RECIPE}
    return {**given, "overrides": list(overrides) or NO_OVERRIDES}
