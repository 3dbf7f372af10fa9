"""The pods that the pipeline's own steps run in: their settings, and one pod as plain fields.

Nodes that train on the cluster are `placement`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from components.settings import Settings

# The chart's network policies select the steps' pods by these.
LABELS = {"app.kubernetes.io/part-of": "darkroom", "app.kubernetes.io/component": "pipeline"}

# Where the launching step finds the account that may create TrainJobs, if the chart gives it one of its own.
LAUNCHER_ACCOUNT = Path("/var/run/secrets/darkroom/launcher")

# The user of the images (images/).
USER = 10001


@dataclass(frozen=True)
class StepPod:
    """The pod that one step runs in; on this machine, where a step is a process, only the image's name is given.

    Attributes:
        image: Container image.
        retries: How often the step is started again after it failed.
        cpus: CPU cores requested; None on this machine, where nothing below matters.
        memory_mib: MiB of memory, request and limit.
        gpus: GPUs.
        gpu_resource: The resource name under which nodes offer GPUs.
        tmp_mib: MiB of disk below /tmp.
        shared_memory_mib: MiB of /dev/shm; 0: the container's default, which is small.
        seconds: How long one attempt may take; 0: no limit.
        node_selector: Labels that the node must have.
        tolerations: Taints of nodes that the pod tolerates.
        node_affinity: Further conditions on the node, as Kubernetes writes them.
        env: Plain environment variables.
        secrets: For each Secret, the keys that become environment variables of the same name.
        secret_folders: For each Secret, the folder that it is mounted at.
        config_maps: For each ConfigMap, the folder that it is mounted at.
        pull_policy: When the image is pulled.
        pull_secrets: Secrets that the image is pulled with.
    """

    image: str
    retries: int = 0
    cpus: float | None = None
    memory_mib: int = 0
    gpus: int = 0
    gpu_resource: str = ""
    tmp_mib: int = 0
    shared_memory_mib: int = 0
    seconds: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    node_affinity: Mapping[str, Any] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    secret_folders: Mapping[str, str] = field(default_factory=dict)
    config_maps: Mapping[str, str] = field(default_factory=dict)
    pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()


PodOf = Callable[[str], StepPod]


class LightPods(Settings):
    """Steps that load no models, and the launcher of a training on nodes of its own."""

    cpus: float = Field(1.0, gt=0, le=256, description="CPU cores requested; a step uses more if they are free")
    memory_gib: float = Field(4.0, gt=0, le=4096, description="GiB of memory, request and limit")
    tmp_gib: float = Field(20.0, gt=0, le=65_536, description="GiB of disk for temporary files, at most")
    hours: float = Field(24.0, gt=0, le=8760, description="hours until an attempt is ended, and the next continues")


class HeavyPods(Settings):
    """Steps that load models; each lane has a pod of its own."""

    cpus: float = Field(4.0, gt=0, le=256, description="CPU cores requested; a step uses more if they are free")
    memory_gib: float = Field(24.0, gt=0, le=4096, description="GiB of memory, request and limit")
    tmp_gib: float = Field(100.0, gt=0, le=65_536, description="GiB of disk for models and temporary files, at most")
    shared_memory_gib: float = Field(2.0, gt=0, le=4096, description="GiB of /dev/shm, part of the memory")
    hours: float = Field(72.0, gt=0, le=8760, description="hours until an attempt is ended, and the next continues")
    gpus: int | None = Field(None, ge=0, le=64, description="GPUs of a pod; null: one if training has any")
    instance: str | None = Field(
        None, pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$", description="machine type; null: any"
    )
    # Argo starts a step again that failed, not one whose pod vanished with its node.
    spot: bool = Field(False, description="take spot nodes: cheap, but a node that vanishes may end the run")


class PodsConfig(Settings):
    """What the steps' pods ask of the cluster; nothing here changes what is computed."""

    light: LightPods = LightPods()
    heavy: HeavyPods = HeavyPods()
