"""What Helm makes is what Kubernetes, Trainer, JobSet, Kueue and the Prometheus Operator take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from components.train.config import LimitsConfig
from pipeline.placement import POD_GRACE_SECONDS, PlacementConfig, ending_seconds, pod_grace

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]
Problems = Callable[[Manifest], list[str]]

KUBERNETES = ("1.37", "1.31")  # the newest, and the oldest that Chart.yaml allows


@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_of_kubernetes_are_valid(
    version: str, everything: Manifest, render: Render, is_custom: Callable[[Manifest], bool]
) -> None:
    own = [manifest for manifest in render(everything) if not is_custom(manifest)]
    assert len(own) > 20
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_custom_objects_are_valid_for_every_preset(
    every_preset: Manifest, render: Render, is_custom: Callable[[Manifest], bool], crd_problems: Problems
) -> None:
    custom = [manifest for manifest in render(every_preset) if is_custom(manifest)]
    assert {manifest["kind"] for manifest in custom} == {
        "TrainingRuntime", "LocalQueue", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass", "PodMonitor",
        "PrometheusRule",
    }  # fmt: skip
    assert [problem for manifest in custom for problem in crd_problems(manifest)] == []


def test_the_schemas_refuse_what_an_api_server_would_drop(
    everything: Manifest, render: Render, crd_problems: Problems
) -> None:
    [runtime] = [manifest for manifest in render(everything) if manifest["kind"] == "TrainingRuntime"]
    [job] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job["template"]["spec"]["backofLimit"] = 0
    runtime["spec"]["template"]["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    problems = "\n".join(crd_problems(runtime))
    assert "backofLimit" in problems
    assert "'Restart' is not one of" in problems


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_job_and_the_jobset_that_trainer_makes_of_it_are_valid(
    version: str, every_preset: Manifest, render: Render, crd_problems: Problems
) -> None:
    """Kubeflow Trainer copies the template and sets how many machines; JobSet makes a Job of each part."""
    [runtime] = [manifest for manifest in render(every_preset) if manifest["kind"] == "TrainingRuntime"]
    spec = runtime["spec"]["template"]["spec"]
    [part] = spec["replicatedJobs"]
    assert part["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert part["name"] == "node"
    assert part["replicas"] == 1
    part["template"]["spec"] |= {"parallelism": 2, "completions": 2, "completionMode": "Indexed"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "run-node-0"},
        "spec": part["template"]["spec"],
    }
    kubernetes_validate.validate(job, version, strict=True)
    jobset = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "run"}, "spec": spec}
    assert crd_problems(jobset) == []


def test_the_grace_is_enough_to_save_on_machines_of_every_pool(every_preset: Manifest, render: Render) -> None:
    """A TrainJob cannot change it, and trainers on spot machines end by themselves, sooner."""
    [runtime] = [manifest for manifest in render(every_preset) if manifest["kind"] == "TrainingRuntime"]
    [part] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    seconds = part["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert seconds == POD_GRACE_SECONDS
    placement = PlacementConfig.parse({"cloud": every_preset["cloud"]})
    assert pod_grace(placement, "on-demand") == seconds >= ending_seconds(LimitsConfig(), placement, "on-demand")


def test_gpus_are_asked_for_by_the_run_alone(every_preset: Manifest, render: Render) -> None:
    """Trainer merges a TrainJob's resources into the runtime's, so a run without GPUs could not get rid of one."""
    [runtime] = [manifest for manifest in render(every_preset) if manifest["kind"] == "TrainingRuntime"]
    [part] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    [container] = part["template"]["spec"]["template"]["spec"]["containers"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


def test_the_queue_admits_the_release_alone_and_tries_the_flavors_in_order(
    everything: Manifest, render: Render
) -> None:
    manifests = render(everything)
    [queue] = [manifest for manifest in manifests if manifest["kind"] == "ClusterQueue"]
    [local] = [manifest for manifest in manifests if manifest["kind"] == "LocalQueue"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    assert queue["spec"]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}
    [group] = queue["spec"]["resourceGroups"]
    assert [flavor["name"] for flavor in group["flavors"]] == ["darkroom-spot", "darkroom-on-demand"]
    for flavor in group["flavors"]:  # Kueue wants the same resources in the same order in each
        assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]


def test_nothing_is_left_out_of_the_cluster_scope_but_what_was_asked_for(render: Render) -> None:
    wide = {"ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass", "ClusterRole", "ClusterRoleBinding"}
    policy = {manifest["kind"] for manifest in render({}) if "namespace" not in manifest["metadata"]}
    assert policy == {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    manifests = render({"admissionPolicy": {"create": False}})
    assert not {manifest["kind"] for manifest in manifests} & wide
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"kubeflow"}
