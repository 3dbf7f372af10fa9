"""A training as a TrainJob of Kubeflow Trainer (pure).

See https://www.kubeflow.org/docs/components/trainer and the CRD of v2.3. The API is alpha, so only this module knows
it. Secrets are passed by reference only. A TrainJob has no ``envFrom``: variables from whole secrets belong in the
chart's TrainingRuntime.

Nothing here is empty or newer than Kubeflow Trainer 2.2: Kueue 0.19 reads a TrainJob into the types of that release and
writes it back when it admits it. What its types do not know, and what is empty, is gone then; but ``spec.trainer`` must
not change, and JobSet's webhook takes no JobSet that has changed. Such a job is admitted, holds its quota and never
starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from components.accounting.ledger import Pool
from components.digests import digest, short
from components.errors import ConfigError
from components.settings import flatten
from components.train.config import TrainConfig
from pipeline import placement as placements
from pipeline.launch.context import TrainerArguments
from pipeline.launch.pods import CONTAINER
from pipeline.placement import PlacementConfig, stop_seconds

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
# Kueue adds a patch of its own to the job; the patches are told apart by their managers' names.
MANAGER = "darkroom.dev/launcher"

JOB_LABEL = "darkroom.dev/job"
RUN_LABEL = "darkroom.dev/run"
WORKDIR, DATASET, SPEC = "darkroom.dev/workdir", "darkroom.dev/dataset", "darkroom.dev/spec"
POOL, NODES, NUMBER = "darkroom.dev/pool", "darkroom.dev/nodes", "darkroom.dev/submission"
LAUNCHER = "darkroom.dev/launcher"
# Set by whoever wants a training to end for good with its state saved: the chart's hook, before a release goes.
WITHDRAWN = "darkroom.dev/withdrawn"

# The launcher and the trainer must reach the same object store.
_SHARED_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_MAX_ARGUMENTS = 128


class Owner(NamedTuple):
    """The Argo Workflow that owns the job: when the Workflow is deleted, so is the job."""

    name: str
    uid: str


def job_label(run: str, workdir: str) -> str:
    """Return the label that all jobs of a run in one workdir share: a DNS label of at most 37 characters.

    JobSet appends up to 26 characters for the names of pods, which must have fewer than 64.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", run.lower())[:24].strip("-")
    name = f"{slug}-{short([run, workdir], 8)}"
    return name if name[0].isalpha() else f"run-{name}"


def render(
    arguments: TrainerArguments,
    placement: PlacementConfig,
    pool: Pool,
    nodes: int,
    number: int,
    owner: Owner | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the TrainJob as the API takes it.

    Args:
        arguments: The trainer's.
        placement: The settings of the nodes.
        pool: The pool that the nodes are requested from.
        nodes: How many nodes.
        number: How many jobs the run has had before; each job gets a name of its own.
        owner: The Workflow, if there is one.
        environment: This process's; the variables that say where the object store is are passed on.

    Raises:
        ConfigError: If the nodes leave no time to save, or if there are more settings than a job takes.
    """
    spec = _spec(arguments, placement, pool, nodes, environment or {})
    label = job_label(arguments.run, arguments.workdir)
    about = {WORKDIR: arguments.workdir, DATASET: arguments.dataset, SPEC: digest(spec)}
    metadata: dict[str, Any] = {
        "name": f"{label}-{number}",
        "labels": {**_labels(arguments), **placements.queue_labels(placement)},
        "annotations": {**about, POOL: pool, NODES: str(nodes), NUMBER: str(number)},
    }
    if placement.namespace is not None:
        metadata["namespace"] = placement.namespace
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    return typed({"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec})


def typed(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job as Kubeflow's own models write it; they drop unknown fields, and none may be dropped."""
    model = TrainerV1alpha1TrainJob.from_dict(job)
    assert model is not None
    written: dict[str, Any] = model.to_dict()
    assert written == job, "kubeflow-trainer-api has other fields than this module"
    return written


def owner_reference(owner: Owner) -> dict[str, Any]:
    """Return the reference that makes the cluster delete the job together with the workflow."""
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": owner.name, "uid": owner.uid}


def _spec(
    arguments: TrainerArguments, placement: PlacementConfig, pool: Pool, nodes: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    trainer: dict[str, Any] = {
        "numNodes": nodes,
        "numProcPerNode": ranks_per_node(arguments.config, placement),
        "command": ["python", "-m", "components.train"],
        "args": [_literal(text) for text in _command_line(arguments, placement, pool)],
    }
    if variables := [*placements.environment(placement), *_shared_variables(placement, environment)]:
        trainer["env"] = variables
    if placement.image is not None:
        trainer["image"] = placement.image
    if resources := placements.resources(placement):
        trainer["resourcesPerNode"] = resources
    return {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": placement.runtime},
        "trainer": trainer,
        "runtimePatches": [_patch(arguments, placement, pool)],
    }


def ranks_per_node(config: TrainConfig, placement: PlacementConfig) -> int:
    """Return how many ranks a node runs."""
    return placement.gpus or config.ranks


def _patch(arguments: TrainerArguments, placement: PlacementConfig, pool: Pool) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    if selector := placements.node_selector(placement, pool):
        pod["nodeSelector"] = selector
    if tolerations := placements.tolerations(placement, pool):
        pod["tolerations"] = tolerations
    if affinity := placements.affinity(placement, pool):
        pod["affinity"] = affinity
    template: dict[str, Any] = {"metadata": {"labels": _run_labels(arguments)}}
    if pod:
        template["spec"] = pod
    job = {"name": CONTAINER, "template": {"spec": {"template": template}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}


def _labels(arguments: TrainerArguments) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "darkroom",
        "app.kubernetes.io/component": "train",
        **_run_labels(arguments),
    }


def _run_labels(arguments: TrainerArguments) -> dict[str, str]:
    """Return the labels by which the objects of a run are found; the chart adds others to pods."""
    return {JOB_LABEL: job_label(arguments.run, arguments.workdir), RUN_LABEL: arguments.run}


def _shared_variables(placement: PlacementConfig, environment: Mapping[str, str]) -> list[dict[str, str]]:
    configured = placement.env.keys() | placement.secret_env.keys()
    names = [name for name in _SHARED_VARIABLES if environment.get(name) and name not in configured]
    return [{"name": name, "value": environment[name]} for name in names]


def _command_line(arguments: TrainerArguments, placement: PlacementConfig, pool: Pool) -> list[str]:
    stop = {"stop_grace_seconds": stop_seconds(arguments.config.limits, placement, pool)}
    config = arguments.config.model_copy(update={"limits": arguments.config.limits.model_copy(update=stop)})
    changed = config.model_dump(mode="json", exclude_defaults=True)
    texts = [*arguments.flags(), *(f"--set={name}={_yaml(value)}" for name, value in flatten(changed).items())]
    if len(texts) > _MAX_ARGUMENTS:
        raise ConfigError(f"{len(texts)} arguments for the trainer, but a TrainJob takes {_MAX_ARGUMENTS}")
    return texts


def _yaml(value: Any) -> str:
    """Return a value as the trainer's ``--set`` reads it: JSON, but with YAML's escapes for characters beyond ASCII."""
    return re.sub(r"[^ -~]", lambda character: f"\\U{ord(character[0]):08x}", json.dumps(value, ensure_ascii=False))


def _literal(text: str) -> str:
    """Return an argument in which the kubelet replaces nothing: it would expand ``$(NAME)``."""
    return text.replace("$", "$$")
