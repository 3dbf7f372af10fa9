"""What one step asks of the cluster, as plain fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What the chart's network policies know the steps' pods by.
LABELS = {"app.kubernetes.io/part-of": "darkroom", "app.kubernetes.io/component": "pipeline"}


# The user of the images (images/).
USER = 10001


@dataclass(frozen=True)
class Pod:
    """What one step asks of the cluster; on this machine there is nothing but a name.

    Attributes:
        image: Container image.
        retries: How often it is started again.
        cpus: CPU cores asked for; None: nothing is said, neither here nor below.
        memory_mib: MiB of memory, asked for and never exceeded.
        gpus: GPUs.
        gpu_resource: The name that machines offer them under.
        tmp_mib: MiB of disk below /tmp.
        shared_memory_mib: MiB of /dev/shm; 0: the container's own, which is small.
        seconds: How long one attempt may take; 0: no limit.
        node_selector: Labels that the machine must have.
        tolerations: Taints that the pod puts up with.
        node_affinity: What else the machine must be, as Kubernetes writes it.
        env: Plain variables.
        secrets: Of each Secret, the keys that become variables of the same name.
        config_maps: Folder of each ConfigMap.
        pull_policy: When the image is pulled.
        pull_secrets: What it is pulled with.
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
    config_maps: Mapping[str, str] = field(default_factory=dict)
    pull_policy: str | None = None
    pull_secrets: tuple[str, ...] = ()


PodOf = Callable[[str], Pod]
