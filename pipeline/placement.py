"""Which nodes training runs on: clouds, pools, spot and queues as plain fields of Kubernetes objects (pure).

A pool is ``spot`` (cheap nodes that the cloud may reclaim) or ``on-demand``. Each cloud marks spot nodes in its own
way; nothing but the table of presets below depends on how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from components.accounting.ledger import Pool
from components.errors import ConfigError
from components.settings import Settings
from components.train.config import LimitsConfig

Cloud = Literal["none", "gke", "eks", "aks", "kind"]

# As the chart's TrainingRuntime has it. Pods have one grace period on nodes of every pool, and it cannot stand in the
# TrainJob: Kueue admits a TrainJob with types that do not know that field and so removes it, and JobSet's webhook then
# rejects the changed JobSet. A spot node is gone sooner; the trainer is told to end in time.
POD_GRACE_SECONDS = 630
# Kept back from a pod's grace period, for the container's own processes to end.
_MARGIN_SECONDS = 1.0

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
_INSTANCE_LABEL = "node.kubernetes.io/instance-type"

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SECRET_KEY = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+")

DnsLabel = Annotated[str, StringConstraints(pattern=_DNS_LABEL)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Preset(NamedTuple):
    """How one cloud marks its spot nodes, and how long a pod on one has to end.

    Attributes:
        spot: Label and value of a spot node; None if the cloud has none.
        on_demand: Label and value of the other nodes; None if they only lack the label above.
        tainted: Whether the label of spot nodes is a taint as well.
        grace: Seconds from SIGTERM until a spot node is gone.
    """

    spot: tuple[str, str] | None
    on_demand: tuple[str, str] | None
    tainted: bool
    grace: int


# Grace: GKE leaves user pods 15 of its 30 s, Azure gives notice 30 s before, AWS 120 s; less the time of the notice.
PRESETS: Mapping[Cloud, Preset] = {
    "none": Preset(None, None, False, 30),
    "gke": Preset(("cloud.google.com/gke-spot", "true"), None, True, 15),
    "eks": Preset(("karpenter.sh/capacity-type", "spot"), ("karpenter.sh/capacity-type", "on-demand"), False, 110),
    "aks": Preset(("kubernetes.azure.com/scalesetpriority", "spot"), None, True, 25),
    "kind": Preset(None, None, False, 30),
}


class PlacementConfig(Settings):
    """The nodes of a cluster that training requests; nothing here changes what is computed."""

    cloud: Cloud = Field("none", description="cloud whose labels and taints mark spot nodes: gke, eks (Karpenter), aks")
    namespace: DnsLabel | None = Field(None, description="namespace of the training; null: that of this pod")
    runtime: DnsLabel = Field("darkroom-train", description="TrainingRuntime of that namespace, made by the chart")
    queue: DnsLabel | None = Field(None, description="Kueue's LocalQueue that admits the training; null: no queue")
    priority: DnsLabel | None = Field(None, description="Kueue's WorkloadPriorityClass; null: the queue's default")

    spot: bool = Field(True, description="start on spot nodes, if the cloud has any")
    nodes: int = Field(1, ge=1, le=1024, description="nodes")
    min_nodes: int | None = Field(
        None, ge=1, le=1024, description="fewest nodes to train on if no more are available; null: all of them"
    )
    gpus: int = Field(1, ge=0, le=64, description="GPUs per node, one process each; 0: train.ranks CPU processes")
    gpu_resource: str = Field("nvidia.com/gpu", min_length=1, description="resource name under which nodes offer GPUs")
    cpus: float | None = Field(None, gt=0, le=1024, description="CPU cores per node; null: the runtime's")
    memory_gib: float | None = Field(None, gt=0, le=65_536, description="GiB of memory per node; null: the runtime's")
    instance: str | None = Field(
        None, pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$", description="machine type; null: any"
    )
    prices: str | None = Field(
        None,
        max_length=500,
        description="YAML file with prices of machine types; null: Darkroom's own list",
    )
    node_selector: dict[str, str] = Field({}, description="further labels that the nodes must have")
    grace_seconds: int | None = Field(
        None, ge=5, le=3600, description="seconds from SIGTERM until a spot node is gone; null: the cloud's"
    )
    pod_grace_seconds: int = Field(
        POD_GRACE_SECONDS,
        ge=5,
        le=86_400,
        description="seconds from SIGTERM until a pod on any node is killed: trainer.gracePeriodSeconds of the chart",
    )

    image: str | None = Field(None, max_length=500, description="image of the trainer; null: the runtime's")
    env: dict[Variable, str] = Field({}, description="environment variables of the trainer, none of them secret")
    secret_env: dict[Variable, str] = Field(
        {}, description="environment variables of the trainer from secrets, as VARIABLE: secret/key"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f".min_nodes ({self.min_nodes}) must not be above .nodes ({self.nodes})")
        for name, reference in self.secret_env.items():
            if not _SECRET_KEY.fullmatch(reference):
                raise ValueError(f".secret_env.{name}: {reference!r} is not allowed; expected secret/key")
        reserved = sorted(name for name in (*self.env, *self.secret_env) if name.startswith("PET_"))
        if reserved:
            raise ValueError(f".env holds {', '.join(reserved)}, which Kubeflow Trainer sets itself; remove it")
        twice = sorted(self.env.keys() & self.secret_env.keys())
        if twice:
            raise ValueError(f".env and .secret_env both set {', '.join(twice)}")
        return self

    @property
    def first_pool(self) -> Pool:
        """The pool that training starts in."""
        return "spot" if self.spot and PRESETS[self.cloud].spot is not None else "on-demand"


def node_selector(placement: PlacementConfig, pool: Pool) -> dict[str, str]:
    """Return the labels that a node of a pool must have."""
    preset = PRESETS[placement.cloud]
    label = preset.spot if pool == "spot" else preset.on_demand
    selector = dict([label]) if label is not None else {}
    if placement.instance is not None:
        selector[_INSTANCE_LABEL] = placement.instance
    return {**selector, **placement.node_selector}


def affinity(placement: PlacementConfig, pool: Pool) -> dict[str, Any] | None:
    """Return what keeps an on-demand pod off spot nodes in a cloud without a label for on-demand ones; otherwise None.

    ``NotIn`` is also true for nodes without the label.
    """
    preset = PRESETS[placement.cloud]
    if pool == "spot" or preset.spot is None or preset.on_demand is not None:
        return None
    key, value = preset.spot
    terms = [{"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def tolerations(placement: PlacementConfig, pool: Pool) -> list[dict[str, str]]:
    """Return the taints that a pod of a pool tolerates."""
    preset = PRESETS[placement.cloud]
    result = []
    if pool == "spot" and preset.spot is not None and preset.tainted:
        key, value = preset.spot
        result.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    if placement.gpus:
        result.append({"key": placement.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    return result


def resources(placement: PlacementConfig) -> dict[str, dict[str, str]]:
    """Return the resources of one node's container: limits equal to requests, but no limit on CPU time.

    Quantities are as Kubernetes itself writes them (8, not 8000m): Kueue writes the whole job anew when it admits it,
    and what then differs from what was submitted is rejected as a change.
    """
    requests, limits = {}, {}
    if placement.cpus is not None:
        requests["cpu"] = _quantity(math.ceil(placement.cpus * 1000), 1000, ("m", "", "k"))
    if placement.memory_gib is not None:
        mebibytes = math.ceil(placement.memory_gib * 1024)
        requests["memory"] = limits["memory"] = _quantity(mebibytes, 1024, ("Mi", "Gi", "Ti"))
    if placement.gpus:
        requests[placement.gpu_resource] = limits[placement.gpu_resource] = str(placement.gpus)
    return {"requests": requests, "limits": limits} if requests else {}


def _quantity(number: int, factor: int, suffixes: tuple[str, ...]) -> str:
    """Return a quantity with the largest suffix that leaves a whole number."""
    *smaller, largest = suffixes
    for suffix in smaller:
        if number % factor:
            return f"{number}{suffix}"
        number //= factor
    return f"{number}{largest}"


def queue_labels(placement: PlacementConfig) -> dict[str, str]:
    """Return Kueue's labels; only the outermost object may carry them, or Kueue counts its parts again."""
    labels = {QUEUE_LABEL: placement.queue, PRIORITY_LABEL: placement.priority}
    return {name: value for name, value in labels.items() if value is not None}


def environment(placement: PlacementConfig) -> list[dict[str, Any]]:
    """Return the container's environment variables: plain ones, and references to secrets.

    One without a value is empty, and none says so itself: Kueue would drop an empty value from the job.
    """
    plain: list[dict[str, Any]] = [
        {"name": name, "value": value} if value else {"name": name} for name, value in placement.env.items()
    ]
    for name, reference in placement.secret_env.items():
        secret, _, key = reference.partition("/")
        plain.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return plain


def spot_grace(placement: PlacementConfig) -> int:
    """Return the seconds from SIGTERM until a spot node is gone."""
    return placement.grace_seconds if placement.grace_seconds is not None else PRESETS[placement.cloud].grace


def pod_grace(placement: PlacementConfig, pool: Pool) -> int:
    """Return the seconds from SIGTERM until a pod on a node of a pool is killed or its node is gone."""
    seconds = placement.pod_grace_seconds
    return min(spot_grace(placement), seconds) if pool == "spot" else seconds


def stop_seconds(limits: LimitsConfig, placement: PlacementConfig, pool: Pool) -> float:
    """Return train.limits.stop_grace_seconds, lowered so that all processes end within a pod's grace period.

    Raises:
        ConfigError: If no time is left to save.
    """
    grace = pod_grace(placement, pool)
    seconds = grace - limits.crash_grace_seconds - _MARGIN_SECONDS
    if seconds < 1:
        setting = "grace_seconds" if grace < placement.pod_grace_seconds else "pod_grace_seconds"
        raise ConfigError(
            f"nodes of this placement are gone {grace} s after the notice, which leaves {seconds:g} s to save; lower "
            f"train.limits.crash_grace_seconds ({limits.crash_grace_seconds:g}) or raise placement.{setting}"
        )
    return min(limits.stop_grace_seconds, seconds)


def ending_seconds(limits: LimitsConfig, placement: PlacementConfig, pool: Pool) -> float:
    """Return how long a gang takes at most to save and end: its nodes are paid for meanwhile."""
    return stop_seconds(limits, placement, pool) + limits.crash_grace_seconds + _MARGIN_SECONDS
