"""A training as a TrainJob of Kubeflow Trainer (pure).

https://www.kubeflow.org/docs/components/trainer and the CRD of v2.3. The API is alpha, so this module alone knows it.
Secrets are only referred to. A TrainJob has no ``envFrom``: what whole secrets bring belongs into the chart's runtime.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from components.digests import digest, short
from components.errors import ConfigError
from components.settings import flatten
from components.train.config import TrainConfig
from pipeline import placement as places
from pipeline.launch.pods import CONTAINER
from pipeline.placement import PlacementConfig, Pool

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
# Kueue appends a patch of its own to the job; each manager's is kept apart by this name.
MANAGER = "darkroom.dev/launcher"

JOB_LABEL = "darkroom.dev/job"
RUN_LABEL = "darkroom.dev/run"
WORKDIR, DATASET, SPEC = "darkroom.dev/workdir", "darkroom.dev/dataset", "darkroom.dev/spec"
POOL, NODES, NUMBER = "darkroom.dev/pool", "darkroom.dev/nodes", "darkroom.dev/submission"
LAUNCHER = "darkroom.dev/launcher"

# Where the store is must mean the same to the launcher and to the trainer.
_SHARED_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
# Of a pod's grace, for the processes of the container itself to end.
_MARGIN_SECONDS = 1.0
_MAX_ARGUMENTS = 128


class Training(NamedTuple):
    """What is to be trained, and where everything lies.

    Attributes:
        run: The run's name.
        workdir: The storage that holds everything, as `components.storage.open.open_storage` takes it.
        base_model: What to start from.
        encoding_key: Names the dataset's folder.
        dataset: The dataset's digest.
        seed: The run's.
        config: The training's settings.
    """

    run: str
    workdir: str
    base_model: str
    encoding_key: str
    dataset: str
    seed: int
    config: TrainConfig


class Owner(NamedTuple):
    """The Argo Workflow that the job belongs to: when it is deleted, so is the job."""

    name: str
    uid: str


def job_label(training: Training) -> str:
    """Return what all jobs of a run in one workdir have in common: 37 characters at most, a DNS label.

    JobSet appends up to 26 more for the names of pods, which must stay below 64.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", training.run.lower())[:24].strip("-")
    name = f"{slug}-{short([training.run, training.workdir], 8)}"
    return name if name[0].isalpha() else f"run-{name}"


def render(
    training: Training,
    placement: PlacementConfig,
    pool: Pool,
    nodes: int,
    number: int,
    owner: Owner | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the TrainJob as the API takes it.

    Args:
        training: What is trained.
        placement: What machines it asks for.
        pool: Which kind of them.
        nodes: How many.
        number: How many jobs the run has had before; each gets a name of its own.
        owner: The workflow, where there is one.
        environment: This process's; what says where the store is goes along.

    Raises:
        ConfigError: Where the machines leave no time to save, or there are more settings than a job takes.
    """
    spec = _spec(training, placement, pool, nodes, environment or {})
    label = job_label(training)
    about = {WORKDIR: training.workdir, DATASET: training.dataset, SPEC: digest(spec)}
    metadata: dict[str, Any] = {
        "name": f"{label}-{number}",
        "labels": {**_labels(training), **places.queue_labels(placement)},
        "annotations": {**about, POOL: pool, NODES: str(nodes), NUMBER: str(number)},
    }
    if placement.namespace is not None:
        metadata["namespace"] = placement.namespace
    if owner is not None:
        metadata["ownerReferences"] = [owner_reference(owner)]
    return typed({"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec})


def typed(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job as Kubeflow's own models write it; they leave out what they do not know, which must be nothing."""
    model = TrainerV1alpha1TrainJob.from_dict(job)
    assert model is not None
    written: dict[str, Any] = model.to_dict()
    assert written == job, "kubeflow-trainer-api knows other fields than this module"
    return written


def owner_reference(owner: Owner) -> dict[str, Any]:
    """Return the reference that makes the cluster delete the job together with the workflow."""
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": owner.name, "uid": owner.uid}


def pod_grace(config: TrainConfig, placement: PlacementConfig, pool: Pool) -> int:
    """Return the pod's terminationGracePeriodSeconds: what a spot machine leaves, or else what saving may take."""
    least = places.spot_grace(placement)
    if pool == "spot":
        return least
    return max(least, math.ceil(config.limits.stop_grace_seconds + config.limits.crash_grace_seconds + _MARGIN_SECONDS))


def stop_seconds(config: TrainConfig, grace: int) -> float:
    """Return train.limits.stop_grace_seconds as it must be for all processes to have ended within a pod's grace.

    Raises:
        ConfigError: Where no time is left.
    """
    left = grace - config.limits.crash_grace_seconds - _MARGIN_SECONDS
    if left < 1:
        raise ConfigError(
            f"machines of this placement are gone {grace} s after the notice, which leaves {left:g} s to save; lower "
            f"train.limits.crash_grace_seconds ({config.limits.crash_grace_seconds:g}) or raise placement.grace_seconds"
        )
    return min(config.limits.stop_grace_seconds, left)


def _spec(
    training: Training, placement: PlacementConfig, pool: Pool, nodes: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    grace = pod_grace(training.config, placement, pool)
    trainer: dict[str, Any] = {
        "numNodes": nodes,
        "numProcPerNode": processes(training.config, placement),
        "command": ["python", "-m", "components.train"],
        "args": [_literal(text) for text in _arguments(training, grace)],
        "env": [*places.environment(placement), *_shared(placement, environment)],
    }
    if placement.image is not None:
        trainer["image"] = placement.image
    if needs := places.resources(placement):
        trainer["resourcesPerNode"] = needs
    return {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": placement.runtime},
        "trainer": trainer,
        "runtimePatches": [_patch(training, placement, pool, grace)],
    }


def processes(config: TrainConfig, placement: PlacementConfig) -> int:
    """Return how many ranks a machine runs."""
    return placement.gpus or config.ranks


def _patch(training: Training, placement: PlacementConfig, pool: Pool, grace: int) -> dict[str, Any]:
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": grace}
    if selector := places.node_selector(placement, pool):
        pod["nodeSelector"] = selector
    if tolerated := places.tolerations(placement, pool):
        pod["tolerations"] = tolerated
    if kept_off := places.affinity(placement, pool):
        pod["affinity"] = kept_off
    template = {"metadata": {"labels": _own_labels(training)}, "spec": pod}
    job = {"name": CONTAINER, "template": {"spec": {"template": template}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}


def _labels(training: Training) -> dict[str, str]:
    known = {"app.kubernetes.io/name": "darkroom", "app.kubernetes.io/component": "train"}
    return {**known, **_own_labels(training)}


def _own_labels(training: Training) -> dict[str, str]:
    """Return the labels that find what belongs to a run; pods have the chart's besides."""
    return {JOB_LABEL: job_label(training), RUN_LABEL: training.run}


def _shared(placement: PlacementConfig, environment: Mapping[str, str]) -> list[dict[str, str]]:
    known = placement.env.keys() | placement.secret_env.keys()
    names = [name for name in _SHARED_VARIABLES if environment.get(name) and name not in known]
    return [{"name": name, "value": environment[name]} for name in names]


def _arguments(training: Training, grace: int) -> list[str]:
    stop = {"stop_grace_seconds": stop_seconds(training.config, grace)}
    config = training.config.model_copy(update={"limits": training.config.limits.model_copy(update=stop)})
    arguments = ["--workdir", training.workdir, "--run", training.run, "--encoding-key", training.encoding_key]
    arguments += ["--dataset", training.dataset, "--base-model", training.base_model, "--seed", str(training.seed)]
    changed = config.model_dump(mode="json", exclude_defaults=True)
    arguments += [f"--set={name}={_yaml(value)}" for name, value in flatten(changed).items()]
    if len(arguments) > _MAX_ARGUMENTS:
        raise ConfigError(f"{len(arguments)} arguments for the trainer, a TrainJob takes {_MAX_ARGUMENTS}")
    return arguments


def _yaml(value: Any) -> str:
    """Return a value as the trainer's ``--set`` reads it: JSON, but YAML has an escape of its own for rare letters."""
    return re.sub(r"[^ -~]", lambda letter: f"\\U{ord(letter[0]):08x}", json.dumps(value, ensure_ascii=False))


def _literal(text: str) -> str:
    """Return an argument that the kubelet leaves alone: it would put variables in the place of ``$(NAME)``."""
    return text.replace("$", "$$")
