"""The pod that each step of the pipeline runs in: settings in, plain fields of a pod out (pure)."""

from __future__ import annotations

import math
from typing import Any

from components.accounting.ledger import Pool
from components.command import Step, load_steps
from pipeline import placement as places
from pipeline.config import RunConfig
from pipeline.kubeflow.release import PRICES, Site
from pipeline.placement import PlacementConfig
from pipeline.pod import LAUNCHER_ACCOUNT, HeavyPods, PodOf, StepPod
from pipeline.recipe import RELEASE_RECIPES

# The pipeline's own first step, which only reads settings.
CONFIGURE = Step("configure")
_HOUR = 3600
# For what comes before and after a training that is stopped at its deadline.
_LAUNCHER_MARGIN_HOURS = 24.0


def step_names() -> list[str]:
    """Return the names of all steps of the pipeline."""
    return [CONFIGURE.name, *load_steps()]


def on_cluster(settings: RunConfig, site: Site) -> PodOf:
    """Return a function from the name of a step to its pod in this run."""
    steps = {CONFIGURE.name: CONFIGURE, **load_steps()}
    return lambda name: _pod(steps[name], settings, site)


def _pod(step: Step, settings: RunConfig, site: Site) -> StepPod:
    trains_here = step.is_launched and settings.launch.where == "local"
    # A step whose training runs on nodes of its own only watches it.
    heavy = step.loads_models and (trains_here or not step.is_launched)
    fields: dict[str, Any] = {
        "image": (site.gpu_image or site.image) if heavy else site.image,
        "retries": site.retries,
        "env": dict(site.env),
        "secrets": _secrets(site, heavy, trains_here),
        "secret_folders": _launcher_account(step, settings, site),
        "config_maps": _config_maps(site),
        "pull_policy": site.image_pull_policy,
        "pull_secrets": site.image_pull_secrets,
        "seconds": _seconds(step, settings, heavy),
    }
    if heavy:
        return _heavy_pod(fields, settings, trains_here, uses_gpu=step.uses_gpu(settings))
    light = settings.pods.light
    return StepPod(**fields, cpus=light.cpus, memory_mib=_mib(light.memory_gib), tmp_mib=_mib(light.tmp_gib))


def _heavy_pod(fields: dict[str, Any], settings: RunConfig, trains_here: bool, uses_gpu: bool) -> StepPod:
    heavy = settings.pods.heavy
    placement = settings.placement if trains_here else _placement_of_step(settings.placement, heavy, uses_gpu)
    takes_spot = heavy.spot and not trains_here and places.PRESETS[placement.cloud].spot is not None
    pool: Pool = "spot" if takes_spot else "on-demand"
    affinity = places.affinity(placement, pool) if placement.gpus else None
    return StepPod(
        **fields,
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


def _secrets(site: Site, heavy: bool, trains_here: bool) -> dict[str, tuple[str, ...]]:
    """Return the secrets of a step, no more than it uses; two names may stand for one Secret."""
    uses: list[tuple[str, tuple[str, ...]]] = [(site.secrets.s3, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))]
    uses += [(site.secrets.huggingFace, ("HF_TOKEN",))] if heavy else []
    uses += [(site.secrets.wandb, ("WANDB_API_KEY",))] if trains_here else []
    keys_of: dict[str, tuple[str, ...]] = {}
    for name, keys in uses:
        if name:
            keys_of[name] = (*keys_of.get(name, ()), *keys)
    return keys_of


def _launcher_account(step: Step, settings: RunConfig, site: Site) -> dict[str, str]:
    """Return where the token of the launcher's account is mounted: only in a step that creates TrainJobs."""
    creates = step.is_launched and settings.launch.where != "local" and site.launcher_secret
    return {site.launcher_secret: str(LAUNCHER_ACCOUNT)} if creates else {}


def _config_maps(site: Site) -> dict[str, str]:
    folders = {site.config_maps.recipes: str(RELEASE_RECIPES), site.config_maps.prices: str(PRICES.parent)}
    return {name: folder for name, folder in folders.items() if name}


def _mib(gib: float) -> int:
    return math.ceil(gib * 1024)
