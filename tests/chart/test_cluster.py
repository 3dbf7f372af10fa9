"""What an administrator applies once: it renders, the operators' APIs take it, and it agrees with the chart."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests import yaml_text

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "k8s"
FOLDERS = sorted(str(path.parent.relative_to(CLUSTER)) for path in CLUSTER.rglob("kustomization.yaml"))
CLOUDS = ("gke", "eks", "aks")


def kustomize(folder: str) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which has kustomize in it, is not installed here")
    run = subprocess.run([kubectl, "kustomize", str(CLUSTER / folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # it warns of fields that it will drop
    return [found for found in yaml_text.load_all(run.stdout) if found]


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_renders_and_is_valid(
    folder: str, is_custom: Callable[[Manifest], bool], request: pytest.FixtureRequest
) -> None:
    manifests = kustomize(folder)
    assert manifests
    problems = []
    for manifest in manifests:
        if is_custom(manifest):
            problems += request.getfixturevalue("crd_problems")(manifest)
        else:
            kubernetes_validate.validate(manifest, "1.37", strict=True)
    assert problems == []


@pytest.mark.parametrize("folder", [f"queues/{cloud}" for cloud in (*CLOUDS, "kind")])
def test_queues_and_cohorts_name_flavors_that_exist(folder: str) -> None:
    manifests = kustomize(folder)
    flavors = {m["metadata"]["name"] for m in manifests if m["kind"] == "ResourceFlavor"}
    used = set()
    for manifest in (m for m in manifests if m["kind"] in ("ClusterQueue", "Cohort")):
        for group in manifest["spec"]["resourceGroups"]:
            used |= {flavor["name"] for flavor in group["flavors"]}
            for flavor in group["flavors"]:
                assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    assert used == flavors


@pytest.mark.parametrize("cloud", CLOUDS)
def test_flavors_are_those_of_the_chart_s_preset(cloud: str, values_with: Callable[..., Manifest]) -> None:
    ours = {flavor["name"]: flavor for flavor in values_with(cloud)["clusterQueue"]["flavors"]}
    for manifest in kustomize(f"queues/{cloud}"):
        if manifest["kind"] == "ResourceFlavor":
            preset = ours[manifest["metadata"]["name"]]
            assert manifest["spec"]["nodeLabels"] == preset["nodeLabels"]
            assert manifest["spec"]["tolerations"] == preset["tolerations"]


def test_priorities_are_those_of_the_presets(values_with: Callable[..., Manifest]) -> None:
    made = {m["metadata"]["name"]: m["value"] for m in kustomize("queues/base/priorities")}
    for cloud in CLOUDS:
        assert values_with(cloud)["clusterQueue"]["priorities"] == made


@pytest.mark.parametrize("cloud", CLOUDS)
def test_flavors_tell_pools_apart_by_the_labels_that_placement_knows(cloud: Any) -> None:
    """Kueue only considers flavors whose labels a pod's own selector and affinity allow."""
    from pipeline.placement import PlacementConfig, affinity, node_selector, tolerations

    flavors = {m["metadata"]["name"]: m["spec"] for m in kustomize(f"queues/{cloud}") if m["kind"] == "ResourceFlavor"}
    spot, demand = flavors["darkroom-spot"], flavors["darkroom-on-demand"]
    placement = PlacementConfig(cloud=cloud)
    assert node_selector(placement, "spot") == spot["nodeLabels"]
    assert node_selector(placement, "on-demand") == (demand["nodeLabels"] or {})
    if not demand["nodeLabels"]:
        away = affinity(placement, "on-demand")
        assert away is not None
        [term] = away["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        [expression] = term["matchExpressions"]
        assert {expression["key"]: expression["values"][0]} == spot["nodeLabels"]
        assert expression["operator"] == "NotIn"
    # Trainer lets the tolerations of Kueue's patch replace those of the launcher's, so none may be missing.
    assert [taint for taint in tolerations(placement, "spot") if taint not in spot["tolerations"]] == []
    assert [taint for taint in tolerations(placement, "on-demand") if taint not in demand["tolerations"]] == []


def test_the_queue_is_the_one_that_the_chart_draws_from(render: Render) -> None:
    [local] = [m for m in render({}) if m["kind"] == "LocalQueue"]
    for cloud in (*CLOUDS, "kind"):
        queues = {m["metadata"]["name"]: m for m in kustomize(f"queues/{cloud}") if m["kind"] == "ClusterQueue"}
        selector = queues[local["spec"]["clusterQueue"]]["spec"]["namespaceSelector"]
        [namespace] = kustomize("namespace")
        assert selector["matchLabels"].items() <= namespace["metadata"]["labels"].items()


def test_machines_of_eks_have_the_labels_and_taints_of_their_flavors() -> None:
    flavors = {m["metadata"]["name"]: m["spec"] for m in kustomize("queues/eks") if m["kind"] == "ResourceFlavor"}
    pools = {m["metadata"]["name"]: m["spec"] for m in kustomize("pools/eks") if m["kind"] == "NodePool"}
    assert pools.keys() == flavors.keys()
    for name, pool in pools.items():
        machine = pool["template"]["spec"]
        wanted = {r["key"]: r["values"] for r in machine["requirements"]}
        for label, value in flavors[name]["nodeLabels"].items():
            assert wanted[label] == [value]
        tolerated = {(t["key"], t["effect"]) for t in flavors[name]["tolerations"]}
        assert {(t["key"], t["effect"]) for t in machine["taints"]} <= tolerated


def test_kueue_manages_trainjobs_and_tells_the_metrics_that_the_dashboard_shows() -> None:
    values = yaml.safe_load((CLUSTER / "kueue" / "values.yaml").read_text("utf-8"))
    config = yaml.safe_load(values["managerConfig"]["controllerManagerConfigYaml"])
    assert config["apiVersion"] == "config.kueue.x-k8s.io/v1beta2"
    assert "trainer.kubeflow.org/trainjob" in config["integrations"]["frameworks"]
    assert config["metrics"]["enableClusterQueueResources"] is True


def test_versions_are_those_that_the_manifests_were_held_against() -> None:
    sources = ROOT.parent / "shared" / "crds" / "SOURCES.txt"
    if not sources.is_file():
        pytest.skip(f"{sources} is not there")
    readme = (CLUSTER / "README.md").read_text("utf-8")
    tags = {line.split()[1]: line.split()[3].removeprefix("v") for line in sources.read_text("utf-8").splitlines()}
    for project, operator in {
        "kubernetes-sigs/jobset": "JobSet",
        "kubernetes-sigs/kueue": "Kueue",
        "kubeflow/trainer": "Kubeflow Trainer",
        "kubeflow/pipelines": "Kubeflow Pipelines",
        "kubernetes-sigs/karpenter": "Karpenter (EKS)",
        "prometheus-operator/prometheus-operator": "Prometheus Operator",
    }.items():
        assert f"| {operator} | {tags[project]} |" in readme
