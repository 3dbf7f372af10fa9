"""The pod that each step of the pipeline runs in: settings and site in, plain fields of a pod out (pure)."""

from __future__ import annotations

from components.command import load_steps
from pipeline.config import RunConfig
from pipeline.kubeflow.release import PRICES, Site
from pipeline.launch.checks.demands import CONFIGURE, StepDemand, demands
from pipeline.pod import LAUNCHER_ACCOUNT, PodOf, StepPod
from pipeline.recipe import RELEASE_RECIPES


def step_names() -> list[str]:
    """Return the names of all steps of the pipeline."""
    return [CONFIGURE.name, *load_steps()]


def on_cluster(settings: RunConfig, site: Site) -> PodOf:
    """Return a function from the name of a step to its pod in this run."""
    asked = demands(settings)
    return lambda name: _pod(asked[name], site)


def _pod(asked: StepDemand, site: Site) -> StepPod:
    return StepPod(
        image=(site.gpu_image or site.image) if asked.models else site.image,
        retries=site.retries,
        cpus=asked.cpus,
        memory_mib=asked.memory_mib,
        gpus=asked.gpus,
        gpu_resource=asked.gpu_resource,
        tmp_mib=asked.tmp_mib,
        shared_memory_mib=asked.shared_memory_mib,
        seconds=asked.seconds,
        node_selector=asked.node_selector,
        tolerations=asked.tolerations,
        node_affinity=asked.node_affinity,
        env=dict(site.env),
        secrets=_secrets(site, asked),
        # Only a step that creates TrainJobs gets the token of the account that may.
        secret_folders={site.launcher_secret: str(LAUNCHER_ACCOUNT)} if asked.launches and site.launcher_secret else {},
        config_maps=_config_maps(site),
        pull_policy=site.image_pull_policy,
        pull_secrets=site.image_pull_secrets,
    )


def _secrets(site: Site, asked: StepDemand) -> dict[str, tuple[str, ...]]:
    """Return the secrets of a step, no more than it uses; two names may stand for one Secret."""
    uses: list[tuple[str, tuple[str, ...]]] = [(site.secrets.s3, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))]
    uses += [(site.secrets.huggingFace, ("HF_TOKEN",))] if asked.models else []
    uses += [(site.secrets.wandb, ("WANDB_API_KEY",))] if asked.trains else []
    keys_of: dict[str, tuple[str, ...]] = {}
    for name, keys in uses:
        if name:
            keys_of[name] = (*keys_of.get(name, ()), *keys)
    return keys_of


def _config_maps(site: Site) -> dict[str, str]:
    folders = {site.config_maps.recipes: str(RELEASE_RECIPES), site.config_maps.prices: str(PRICES.parent)}
    return {name: folder for name, folder in folders.items() if name}
