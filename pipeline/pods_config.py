"""Settings of the pods that the pipeline's own steps run in; nodes that train on the cluster are `placement`."""

from __future__ import annotations

from pydantic import Field

from components.settings import Settings


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
