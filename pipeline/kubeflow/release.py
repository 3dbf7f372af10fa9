"""A release of Darkroom: where Kubeflow is, which images to use, which runs recur.

The chart writes it as ``deploy.yaml``. Secrets are only named here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from components.settings import Settings, read_values
from pipeline.kubeflow.cron import seconds_first
from pipeline.placement import POD_GRACE_SECONDS, Cloud, DnsLabel, Variable

# Where the ConfigMap of prices is mounted; for that of the recipes see `pipeline.recipe.RELEASE_RECIPES`.
PRICES = Path("/etc/darkroom-prices/prices.yaml")

# A Secret or a ConfigMap may have dots in its name, but nobody needs them.
Name = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)?$")]
Image = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^\S+$")]
# Kubeflow makes the name of a Kubernetes object of it.
Title = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class Secrets(Settings):
    """Secrets by name; their contents are never read here."""

    s3: Name = Field("", description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty: none")
    huggingFace: Name = Field("", description="Secret with HF_TOKEN; empty: none")
    wandb: Name = Field("", description="Secret with WANDB_API_KEY; empty: none")


class ConfigMaps(Settings):
    """ConfigMaps that are mounted in the pipeline's pods."""

    recipes: Name = Field("", description="recipes of the release, mounted at /etc/darkroom-recipes; empty: none")
    prices: Name = Field("", description="price list, mounted at /etc/darkroom-prices; empty: none")


class Site(Settings):
    """What the steps' pods have in common on one cluster."""

    image: Image = Field("darkroom:latest", description="image of the light steps, best by digest")
    gpu_image: str = Field("", max_length=500, description="image of steps that load models; empty: the same")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="when nodes pull images; null: the cluster's default"
    )
    image_pull_secrets: tuple[Name, ...] = Field((), description="Secrets that nodes pull images with")
    retries: int = Field(5, ge=0, le=100, description="how often a failed step is started again")
    secrets: Secrets = Secrets()
    launcher_secret: Name = Field(
        "", description="Secret with the token of the account that creates TrainJobs; empty: the pods' own account"
    )
    env: dict[Variable, str] = Field({}, description="plain variables of every step, none of them secret")
    config_maps: ConfigMaps = ConfigMaps()


class Schedule(Settings):
    """One recurring run."""

    name: Title = Field(description="name of the recurring run: a-z, 0-9 and '-', at most 63 characters")
    cron: str = Field(description="when it runs: five fields, or six with seconds first; in the API's time zone")
    recipe: str = Field(min_length=1, description="name of a recipe, a .yaml file, or a recipe's own text")
    workdir: str = Field(min_length=1, description="s3://bucket/prefix that holds everything the runs make")
    source: str = Field("", description="s3://bucket/prefix with the images; empty: what the recipe says")
    overrides: tuple[str, ...] = Field((), description="settings that differ from the recipe's: section.key=value")
    enabled: bool = Field(True, description="whether it runs; false keeps it in the dashboard, paused")

    @field_validator("cron")
    @classmethod
    def _with_seconds(cls, cron: str) -> str:
        return seconds_first(cron)


class Deployment(Site):
    """A release: the site, Kubeflow's address, the pipeline's name and the recurring runs."""

    endpoint: str = Field("", description="address of Kubeflow's API; empty: the default of Kubeflow's own client")
    namespace: DnsLabel = Field("kubeflow", description="namespace of the runs, if users have namespaces of their own")
    pipeline: str = Field(
        "darkroom", max_length=128, pattern=r"^\S(.*\S)?$", description="name of the pipeline in the dashboard"
    )
    experiment: str = Field("darkroom", min_length=1, max_length=128, description="experiment of the runs")
    service_account: Name = Field("", description="account of the runs' pods; empty: Kubeflow's default")
    recipe: str = Field("demo", min_length=1, description="recipe that the dashboard's form names")
    workdir: str = Field("s3://bucket/darkroom", min_length=1, description="workdir that the dashboard's form names")
    runtime: DnsLabel = Field("darkroom-train", description="TrainingRuntime of the release")
    pod_grace_seconds: int = Field(
        POD_GRACE_SECONDS, ge=5, le=86_400, description="seconds that the TrainingRuntime leaves a pod to end"
    )
    queue: Name = Field("", description="Kueue's LocalQueue; empty: none")
    cloud: Cloud = Field("none", description="the cloud, whose labels and taints mark spot nodes")
    schedules: tuple[Schedule, ...] = Field((), description="recurring runs; others of this release are removed")
    withdraw: bool = Field(False, description="only remove the recurring runs: the release is being uninstalled")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [schedule.name for schedule in self.schedules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f".schedules: {', '.join(twice)} is there twice; each needs a name of its own")
        if self.withdraw and names:
            raise ValueError(f".withdraw removes all schedules, but {', '.join(names)} is listed")
        return self

    @property
    def owner(self) -> str:
        """The owner that is written into this release's recurring runs."""
        return self.service_account or re.sub(r"\s+", "-", self.pipeline)

    @property
    def cluster(self) -> list[str]:
        """Settings that a run takes from the release: they win over the recipe, the run's own overrides over them."""
        settings = [f"placement.runtime={self.runtime}", f"placement.cloud={self.cloud}"]
        settings += [f"placement.queue={self.queue}"] if self.queue else []
        if self.pod_grace_seconds != POD_GRACE_SECONDS:
            settings.append(f"placement.pod_grace_seconds={self.pod_grace_seconds}")
        return settings + ([f"placement.prices={PRICES}"] if self.config_maps.prices else [])


def read_deployment(file: Path) -> Deployment:
    """Read a deployment.

    Raises:
        ConfigError: If it cannot be read or anything in it is wrong, with everything that is wrong.
    """
    return Deployment.parse(read_values(file))
