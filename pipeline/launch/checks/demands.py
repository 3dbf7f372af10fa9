"""What each step of a run asks of the node that its pod runs on, and what the pods of a compiled pipeline lack (pure).

The pods of a version of the pipeline are compiled for one run's settings, and Kubeflow offers any version to any run.
So a version carries what its pods ask for, and a run that needs more is rejected: otherwise steps that want a GPU
would compute on a processor for days, without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from components.accounting.ledger import Pool
from components.command import Step, load_steps
from components.errors import ConfigError
from pipeline import placement as places
from pipeline.config import RunConfig
from pipeline.placement import PlacementConfig
from pipeline.pod import HeavyPods

# The pipeline's own first step, which only reads settings.
CONFIGURE = Step("configure")
_HOUR = 3600
# For what comes before and after a training that is stopped at its deadline.
_LAUNCHER_MARGIN_HOURS = 24.0


@dataclass(frozen=True)
class StepDemand:
    """What one step asks of the cluster.

    Attributes:
        models: Whether its image must hold what loads models.
        launches: Whether it creates TrainJobs, with the account that may.
        trains: Whether the training runs in the pod itself.
        cpus: CPU cores.
        memory_mib: MiB of memory.
        gpus: GPUs.
        gpu_resource: The resource name under which nodes offer GPUs.
        tmp_mib: MiB of disk below /tmp.
        shared_memory_mib: MiB of /dev/shm; 0: the container's default.
        seconds: How long one attempt may take; 0: no limit.
        node_selector: Labels that the node must have.
        tolerations: Taints of nodes that the pod tolerates.
        node_affinity: Further conditions on the node.
    """

    models: bool = False
    launches: bool = False
    trains: bool = False
    cpus: float = 0.0
    memory_mib: int = 0
    gpus: int = 0
    gpu_resource: str = ""
    tmp_mib: int = 0
    shared_memory_mib: int = 0
    seconds: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    node_affinity: Mapping[str, Any] | None = None


def demands(settings: RunConfig) -> dict[str, StepDemand]:
    """Return what the steps of a run ask for, by their names."""
    return {name: _demand(step, settings) for name, step in {CONFIGURE.name: CONFIGURE, **load_steps()}.items()}


def as_json(asked: Mapping[str, StepDemand]) -> dict[str, dict[str, Any]]:
    """Return demands as a version of the pipeline carries them: what is compared, without what is not asked for."""
    return {
        step: {name: value for name, value in asdict(one).items() if value and name != "tolerations"}
        for step, one in asked.items()
    }


def check_pods(pods: Mapping[str, Mapping[str, Any]], settings: RunConfig) -> None:
    """Check that the pods of a version of the pipeline are enough for a run; more than enough is accepted.

    Args:
        pods: What the version carries, as `as_json` made it; empty if it carries nothing.
        settings: The run.

    Raises:
        ConfigError: If they are not, with what each step lacks and what to do.
    """
    if problems := list(_shortfalls(pods, settings)) if pods else []:
        raise ConfigError(
            "\n".join(
                [
                    f"the pods of this version of the pipeline are too little for {settings.name}:",
                    *(f"- {problem}" for problem in problems),
                    "pods belong to a version, not to a run: take the version of this recipe in the form, or let",
                    "`darkroom submit --file deploy.yaml` (schedule set --file) make one",
                ]
            )
        )


def _shortfalls(pods: Mapping[str, Mapping[str, Any]], settings: RunConfig) -> Iterator[str]:
    """Yield what pods lack, steps that lack the same on one line."""
    steps_of: dict[str, list[str]] = {}
    for step, needed in demands(settings).items():
        known = {one.name for one in fields(StepDemand)}
        given = StepDemand(**{name: value for name, value in pods.get(step, {}).items() if name in known})
        if lacks := "; ".join(_lacks(given, needed)):
            steps_of.setdefault(lacks, []).append(step)
    for lacks, steps in steps_of.items():
        yield f"{', '.join(steps)}: {lacks}"


def _lacks(given: StepDemand, needed: StepDemand) -> Iterator[str]:
    if needed.models and not given.models:
        yield "the image without models, needed the one with them"
    if needed.launches and not given.launches:
        yield "no account that creates TrainJobs, needed one"
    if given.gpus < needed.gpus or (needed.gpus and given.gpu_resource != needed.gpu_resource):
        yield f"{_gpus(given)}, needed {_gpus(needed)}"
    for name, unit in (("cpus", "CPUs"), ("memory_mib", "MiB"), ("tmp_mib", "MiB of disk")):
        if getattr(given, name) < getattr(needed, name):
            yield f"{getattr(given, name):g} {unit}, needed {getattr(needed, name):g}"
    if given.shared_memory_mib < needed.shared_memory_mib:
        yield f"{given.shared_memory_mib:g} MiB of /dev/shm, needed {needed.shared_memory_mib:g}"
    if given.seconds and (not needed.seconds or given.seconds < needed.seconds):
        limit = f"{needed.seconds / _HOUR:g}" if needed.seconds else "no limit"
        yield f"{given.seconds / _HOUR:g} hours, needed {limit}"
    if needed.gpus and (given.node_selector, given.node_affinity) != (needed.node_selector, needed.node_affinity):
        yield f"nodes with {_labels(given)}, needed {_labels(needed)}"


def _gpus(one: StepDemand) -> str:
    return f"{one.gpus:g} {one.gpu_resource}" if one.gpus else "no GPU"


def _labels(one: StepDemand) -> str:
    labels = [f"{key}={value}" for key, value in one.node_selector.items()]
    return ", ".join([*labels, *(["an affinity"] if one.node_affinity else [])]) or "any labels"


def _demand(step: Step, settings: RunConfig) -> StepDemand:
    trains_here = step.is_launched and settings.launch.where == "local"
    # A step whose training runs on nodes of its own only watches it.
    heavy = step.loads_models and (trains_here or not step.is_launched)
    light = settings.pods.light
    asked = StepDemand(
        models=heavy,
        launches=step.is_launched and not trains_here,
        trains=trains_here,
        cpus=light.cpus,
        memory_mib=_mib(light.memory_gib),
        tmp_mib=_mib(light.tmp_gib),
        seconds=_seconds(step, settings, heavy),
    )
    return _heavy_demand(asked, settings, step.uses_gpu(settings)) if heavy else asked


def _heavy_demand(light: StepDemand, settings: RunConfig, uses_gpu: bool) -> StepDemand:
    heavy, trains_here = settings.pods.heavy, light.trains
    placement = settings.placement if trains_here else _placement_of_step(settings.placement, heavy, uses_gpu)
    takes_spot = heavy.spot and not trains_here and places.PRESETS[placement.cloud].spot is not None
    pool: Pool = "spot" if takes_spot else "on-demand"
    affinity = places.affinity(placement, pool) if placement.gpus else None
    return replace(
        light,
        cpus=placement.cpus or heavy.cpus,
        memory_mib=_mib(placement.memory_gib or heavy.memory_gib),
        gpus=placement.gpus,
        gpu_resource=placement.gpu_resource if placement.gpus else "",
        tmp_mib=_mib(heavy.tmp_gib),
        shared_memory_mib=_mib(heavy.shared_memory_gib),
        node_selector=places.node_selector(placement, pool) if placement.gpus else {},
        tolerations=tuple(places.tolerations(placement, pool)) if placement.gpus else (),
        node_affinity=affinity["nodeAffinity"] if affinity is not None else None,
    )


def _placement_of_step(placement: PlacementConfig, heavy: HeavyPods, uses_gpu: bool) -> PlacementConfig:
    """Return the placement of a step's own pod: its GPUs and machine type are not those of the training."""
    gpus = min(placement.gpus, 1) if heavy.gpus is None else heavy.gpus
    own = {"gpus": gpus if uses_gpu else 0, "instance": heavy.instance, "cpus": None, "memory_gib": None}
    return placement.model_copy(update=own)


def _seconds(step: Step, settings: RunConfig, heavy: bool) -> int:
    if step.is_launched:
        hours = settings.launch.deadline_hours
        return 0 if hours is None else math.ceil((hours + _LAUNCHER_MARGIN_HOURS) * _HOUR)
    return math.ceil((settings.pods.heavy.hours if heavy else settings.pods.light.hours) * _HOUR)


def _mib(gib: float) -> int:
    return math.ceil(gib * 1024)
