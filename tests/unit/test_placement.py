"""What a pool means on each cloud, as fields of pods."""

from __future__ import annotations

from typing import Any

import pytest

from components.accounting.ledger import Pool
from components.errors import ConfigError
from pipeline import placement
from pipeline.placement import PRESETS, PlacementConfig

GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def place(**values: Any) -> PlacementConfig:
    return PlacementConfig.parse(values)


@pytest.mark.parametrize(
    ("cloud", "pool", "selector", "tolerated"),
    [
        ("none", "on-demand", {}, []),
        ("kind", "on-demand", {}, []),
        ("gke", "spot", {"cloud.google.com/gke-spot": "true"}, ["cloud.google.com/gke-spot"]),
        ("gke", "on-demand", {}, []),
        ("eks", "spot", {"karpenter.sh/capacity-type": "spot"}, []),
        ("eks", "on-demand", {"karpenter.sh/capacity-type": "on-demand"}, []),
        (
            "aks",
            "spot",
            {"kubernetes.azure.com/scalesetpriority": "spot"},
            ["kubernetes.azure.com/scalesetpriority"],
        ),
        ("aks", "on-demand", {}, []),
    ],
)
def test_each_cloud_names_its_pools_in_its_own_way(
    cloud: str, pool: Pool, selector: dict[str, str], tolerated: list[str]
) -> None:
    where = place(cloud=cloud, gpus=0)
    assert placement.node_selector(where, pool) == selector
    assert [taint["key"] for taint in placement.tolerations(where, pool)] == tolerated
    assert all(taint["effect"] == "NoSchedule" for taint in placement.tolerations(where, pool))


@pytest.mark.parametrize("cloud", ["gke", "eks", "aks"])
def test_no_machine_is_in_both_pools(cloud: str) -> None:
    where = place(cloud=cloud)
    (key, value) = PRESETS[where.cloud].spot or ("", "")
    asked, kept_off = placement.node_selector(where, "on-demand"), placement.affinity(where, "on-demand")
    if kept_off is None:
        assert asked[key] != value
    else:
        (term,) = kept_off["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term == {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]}
    assert placement.affinity(where, "spot") is None


@pytest.mark.parametrize(
    ("values", "pool"),
    [
        ({"cloud": "gke"}, "spot"),
        ({"cloud": "gke", "spot": False}, "on-demand"),
        ({"cloud": "kind"}, "on-demand"),
        ({}, "on-demand"),
    ],
)
def test_training_starts_on_spot_machines_where_there_are_any(values: dict[str, Any], pool: str) -> None:
    assert place(**values).first_pool == pool


def test_resources_are_whole_numbers_of_what_kubernetes_counts() -> None:
    where = place(gpus=8, cpus=11.5, memory_gib=80.25)
    assert placement.resources(where) == {
        "requests": {"cpu": "11500m", "memory": "82176Mi", "nvidia.com/gpu": "8"},
        "limits": {"memory": "82176Mi", "nvidia.com/gpu": "8"},
    }
    assert placement.tolerations(where, "on-demand") == [GPU]
    assert placement.resources(place(gpus=0)) == {}


def test_a_machine_type_and_further_labels_are_asked_for_by_name() -> None:
    where = place(cloud="gke", instance="a2-highgpu-8g", node_selector={"team": "vision"})
    assert placement.node_selector(where, "spot") == {
        "cloud.google.com/gke-spot": "true",
        "node.kubernetes.io/instance-type": "a2-highgpu-8g",
        "team": "vision",
    }


def test_what_a_person_says_of_a_label_goes_before_what_is_known_of_the_cloud() -> None:
    where = place(cloud="eks", node_selector={"karpenter.sh/capacity-type": "reserved"})
    assert placement.node_selector(where, "on-demand") == {"karpenter.sh/capacity-type": "reserved"}


def test_all_machines_may_be_the_fewest() -> None:
    assert place(nodes=2, min_nodes=2).min_nodes == 2


def test_secrets_are_only_referred_to() -> None:
    where = place(env={"AWS_REGION": "eu-west-1"}, secret_env={"AWS_SECRET_ACCESS_KEY": "darkroom-s3/secret-key"})
    assert placement.environment(where) == [
        {"name": "AWS_REGION", "value": "eu-west-1"},
        {
            "name": "AWS_SECRET_ACCESS_KEY",
            "valueFrom": {"secretKeyRef": {"name": "darkroom-s3", "key": "secret-key"}},
        },
    ]


def test_queue_and_priority_are_labels() -> None:
    assert placement.queue_labels(place()) == {}
    assert placement.queue_labels(place(queue="gpus", priority="low")) == {
        "kueue.x-k8s.io/queue-name": "gpus",
        "kueue.x-k8s.io/priority-class": "low",
    }


def test_the_grace_is_the_clouds_unless_it_is_extended() -> None:
    assert [placement.spot_grace(place(cloud=cloud)) for cloud in ("gke", "aks", "eks")] == [15, 25, 110]
    assert placement.spot_grace(place(cloud="gke", grace_seconds=110)) == 110


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"nodes": 2, "min_nodes": 3}, ("min_nodes (3)", "nodes (2)")),
        ({"secret_env": {"KEY": "no-slash"}}, ("secret_env.KEY", "'no-slash'", "secret/key")),
        ({"env": {"PET_NNODES": "4"}}, ("env", "PET_NNODES")),
        ({"secret_env": {"PET_RDZV_ID": "s/k"}}, ("env", "PET_RDZV_ID")),
        ({"env": {"A": "1"}, "secret_env": {"A": "s/k"}}, ("env", "secret_env", "A")),
        ({"queue": "Not_a_label"}, ("queue", "'Not_a_label'")),
        ({"cloud": "gce"}, ("cloud", "'gce'", "'gke'")),
        ({"env": {"a b": "1"}}, ("'a b'",)),
    ],
)
def test_what_no_cluster_would_take_is_refused(values: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        place(**values)
    assert all(part in str(refused.value) for part in parts)
