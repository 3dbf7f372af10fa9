"""Which machine each step of the pipeline asks for: settings in, plain fields of a pod out (pure)."""

from __future__ import annotations

import math
from typing import Any

from pipeline import placement as places
from pipeline.config import RELEASE_RECIPES, RunConfig
from pipeline.kubeflow.release import PRICES, Site
from pipeline.placement import PlacementConfig, Pool
from pipeline.pod import Pod, PodOf
from pipeline.pods_config import HeavyPods

# These steps load models, which only the GPU image can.
_RUN_MODELS = frozenset({"autoencoder", "caption", "latents", "evaluate", "publish"})
_HOUR = 3600
# For what comes before and after a training that is stopped at its deadline.
_TRAIN_MARGIN_HOURS = 24.0


def on_cluster(settings: RunConfig, site: Site) -> PodOf:
    """Return what tells the pod of each step of a run by the step's name."""
    return lambda step: _pod(step, settings, site)


def _pod(step: str, settings: RunConfig, site: Site) -> Pod:
    trains = step == "train" and settings.launch.where == "local"
    loads = trains or step in _RUN_MODELS
    asked: dict[str, Any] = {
        "image": (site.gpu_image or site.image) if loads else site.image,
        "retries": site.retries,
        "env": dict(site.env),
        "secrets": _secrets(site, loads, trains),
        "config_maps": _config_maps(site),
        "pull_policy": site.image_pull_policy,
        "pull_secrets": site.image_pull_secrets,
        "seconds": _seconds(step, settings, loads),
    }
    if not loads:
        light = settings.pods.light
        return Pod(**asked, cpus=light.cpus, memory_mib=_mib(light.memory_gib), tmp_mib=_mib(light.tmp_gib))
    heavy = settings.pods.heavy
    machine = _machine(settings.placement, heavy, trains, uses_gpu=trains or _uses_gpu(step, settings))
    pool: Pool = "spot" if heavy.spot and not trains and places.PRESETS[machine.cloud].spot is not None else "on-demand"
    affinity = places.affinity(machine, pool) if machine.gpus else None
    return Pod(
        **asked,
        cpus=machine.cpus or heavy.cpus,
        memory_mib=_mib(machine.memory_gib or heavy.memory_gib),
        gpus=machine.gpus,
        gpu_resource=machine.gpu_resource if machine.gpus else "",
        tmp_mib=_mib(heavy.tmp_gib),
        shared_memory_mib=_mib(heavy.shared_memory_gib),
        node_selector=places.node_selector(machine, pool) if machine.gpus else {},
        tolerations=tuple(places.tolerations(machine, pool)) if machine.gpus else (),
        node_affinity=affinity["nodeAffinity"] if affinity is not None else None,
    )


def _uses_gpu(step: str, settings: RunConfig) -> bool:
    """Tell whether a step that loads models also computes with them."""
    if step == "autoencoder":
        return settings.model.base is None
    if step == "caption":
        return bool(settings.caption.captioners)
    return step in ("latents", "evaluate")


def _machine(placement: PlacementConfig, heavy: HeavyPods, trains: bool, uses_gpu: bool) -> PlacementConfig:
    """Return the placement as one step's pod has it: its GPUs and machine type are not those of the training."""
    if trains:
        return placement
    gpus = min(placement.gpus, 1) if heavy.gpus is None else heavy.gpus
    own = {"gpus": gpus if uses_gpu else 0, "instance": heavy.instance, "cpus": None, "memory_gib": None}
    return placement.model_copy(update=own)


def _seconds(step: str, settings: RunConfig, loads: bool) -> int:
    if step == "train":
        hours = settings.launch.deadline_hours
        return 0 if hours is None else math.ceil((hours + _TRAIN_MARGIN_HOURS) * _HOUR)
    return math.ceil((settings.pods.heavy.hours if loads else settings.pods.light.hours) * _HOUR)


def _secrets(site: Site, loads: bool, trains: bool) -> dict[str, tuple[str, ...]]:
    """Return the secrets of a step: no more than it uses; two names may be one Secret."""
    wanted: list[tuple[str, tuple[str, ...]]] = [(site.secrets.s3, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))]
    wanted += [(site.secrets.huggingFace, ("HF_TOKEN",))] if loads else []
    wanted += [(site.secrets.wandb, ("WANDB_API_KEY",))] if trains else []
    found: dict[str, tuple[str, ...]] = {}
    for name, keys in wanted:
        if name:
            found[name] = (*found.get(name, ()), *keys)
    return found


def _config_maps(site: Site) -> dict[str, str]:
    mounted = {site.config_maps.recipes: str(RELEASE_RECIPES), site.config_maps.prices: str(PRICES.parent)}
    return {name: folder for name, folder in mounted.items() if name}


def _mib(gib: float) -> int:
    return math.ceil(gib * 1024)
