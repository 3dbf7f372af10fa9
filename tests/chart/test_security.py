"""Least privilege: what each pod may be, hold, ask for and talk to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]
PodSpecs = Callable[[list[Manifest]], dict[str, Manifest]]

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def offences(pod: Manifest) -> Iterator[str]:
    """Yield what Pod Security's level ``restricted`` refuses, and what Darkroom asks for beyond it.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", ()):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume}"
    whole = pod.get("securityContext", {})
    if whole.get("sysctls"):
        yield "sysctls"
    for kind in CONTAINERS:
        for container in pod.get(kind, ()):
            yield from (f"{container['name']}: {found}" for found in container_offences(container, whole))


def container_offences(container: Manifest, pod: Manifest) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("privileged") or own.get("procMount", "Default") != "Default":
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) in (None, 0):
        yield "no numeric user other than root"  # runAsNonRoot cannot judge an image whose user is a name
    profile = own.get("seccompProfile", pod.get("seccompProfile", {}))
    if profile.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield "no limit on memory"


def test_every_pod_passes_restricted(every_preset: Manifest, render: Render, pod_specs: PodSpecs) -> None:
    pods = pod_specs(render(every_preset))
    assert {name.split(".")[0] for name in pods} == {
        "Deployment/dr-darkroom-exporter", "Job/dr-darkroom-deploy", "Job/dr-darkroom-withdraw",
        "Job/dr-darkroom-end-trainings",
        "Pod/dr-darkroom-test-access", "Pod/dr-darkroom-test-help", "TrainingRuntime/darkroom-train",
    }  # fmt: skip
    assert {name: list(offences(pod)) for name, pod in pods.items()} == {name: [] for name in pods}


@pytest.mark.parametrize(
    "change",
    [
        {"hostNetwork": True},
        {"securityContext": {}},
        {"securityContext": {"runAsNonRoot": True, "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}},
        {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]},
        {"initContainers": [{"name": "x"}]},
    ],
)
def test_the_rule_finds_what_is_not_restricted(
    change: Manifest, everything: Manifest, render: Render, pod_specs: PodSpecs
) -> None:
    for pod in pod_specs(render(everything)).values():
        assert list(offences({**pod, **change}))


def test_only_pods_of_a_run_get_a_token_for_the_kubernetes_api_and_one_step_that_of_the_launcher(
    everything: Manifest, render: Render, pod_specs: PodSpecs
) -> None:
    manifests = render(everything)
    mounting = {m["metadata"]["name"] for m in manifests if m.get("automountServiceAccountToken")}
    assert mounting == {"dr-darkroom-pipeline"}
    for name, pod in pod_specs(manifests).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        secrets = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        assert secrets == (["dr-darkroom-launcher"] if name == "Pod/dr-darkroom-test-access.spec" else []), name


def test_the_hook_gets_a_token_for_kubeflow_alone_where_it_keeps_users_apart(
    render: Render, pod_specs: PodSpecs
) -> None:
    for manifest in render({"kfp": {"multiUser": True}}, namespace="team"):
        if manifest["kind"] == "Job" and manifest["metadata"]["name"].endswith(("-deploy", "-withdraw")):
            [pod] = pod_specs([manifest]).values()
            [token] = [volume["projected"] for volume in pod["volumes"] if volume["name"] == "token"]
            [source] = token["sources"]
            assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"


def rights(manifests: list[Manifest], role: str) -> set[tuple[str, str]]:
    [found] = [m for m in manifests if m["kind"] == "Role" and m["metadata"]["name"] == role]
    return {
        (f"{group}/{resource}".lstrip("/"), verb)
        for rule in found["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_launcher_may_do_this_and_no_more(everything: Manifest, render: Render) -> None:
    assert rights(render(everything), "dr-darkroom-launcher") == {
        *(("trainer.kubeflow.org/trainjobs", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")),
        ("jobset.x-k8s.io/jobsets", "get"),
        ("kueue.x-k8s.io/workloads", "list"),
        *(("pods", verb) for verb in ("get", "list", "watch")),
        ("pods/log", "get"),
        ("events", "list"),
    }


def test_the_hook_that_ends_trainings_may_do_this_and_no_more(everything: Manifest, render: Render) -> None:
    manifests = render(everything)
    assert rights(manifests, "dr-darkroom-end-trainings") == {
        *(("trainer.kubeflow.org/trainjobs", verb) for verb in ("list", "patch", "delete")),
        ("pods", "list"),
        ("rbac.authorization.k8s.io/rolebindings", "delete"),
    }
    [role] = [m for m in manifests if m["kind"] == "Role" and m["metadata"]["name"] == "dr-darkroom-end-trainings"]
    [binding] = [rule for rule in role["rules"] if "rolebindings" in rule["resources"]]
    assert binding["resourceNames"] == ["dr-darkroom-launcher"]
    assert ("RoleBinding", "dr-darkroom-launcher") in {(m["kind"], m["metadata"]["name"]) for m in manifests}


def test_no_role_has_wildcards_or_secrets(every_preset: Manifest, render: Render) -> None:
    manifests = [*render(every_preset), *render({**every_preset, "kfp": {"multiUser": True}}, namespace="team")]
    roles = [m for m in manifests if m["kind"] == "Role"]
    assert {m["metadata"]["namespace"] for m in roles} == {"kubeflow", "team"}
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in json.dumps(rule)
            if "configmaps" in rule["resources"]:
                assert rule["resourceNames"] == ["kfp-launcher"]
                assert rule["verbs"] == ["get"]
            if "secrets" in rule["resources"]:  # only where Kubeflow's own store has a key instead of an identity
                assert every_preset["cloud"] == "kind"
                assert rule["resourceNames"] == ["mlpipeline-minio-artifact"]
                assert rule["verbs"] == ["get"]


def test_every_binding_names_a_role_and_an_account_that_exist(everything: Manifest, render: Render) -> None:
    manifests = render({**everything, "kfp": {"multiUser": True}}, namespace="team")
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for binding in (m for m in manifests if m["kind"] == "RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in there
        for subject in binding["subjects"]:
            assert (subject["kind"], subject["name"]) in there
            assert subject["namespace"] == "team"
    bound = {s["name"] for m in manifests if m["kind"] == "RoleBinding" for s in m["subjects"]}
    accounts_of_pods = {f"dr-darkroom-{name}" for name in ("launcher", "pipeline", "deploy", "end-trainings")}
    assert bound == accounts_of_pods  # nothing for the trainer
    accounts = {m["roleRef"]["name"]: m["subjects"][0]["name"] for m in manifests if m["kind"] == "RoleBinding"}
    assert accounts["dr-darkroom-launcher"] == "dr-darkroom-launcher"
    assert accounts["dr-darkroom-kfp"] == "dr-darkroom-pipeline"


def test_secrets_are_named_and_each_pod_gets_only_those_it_uses(
    everything: Manifest, render: Render, pod_specs: PodSpecs
) -> None:
    manifests = render(everything)
    [secret] = [m for m in manifests if m["kind"] == "Secret"]
    assert secret["type"] == "kubernetes.io/service-account-token"  # which Kubernetes fills
    assert not {"data", "stringData"} & set(secret)
    used = {}
    for name, pod in pod_specs(manifests).items():
        variables = pod["containers"][0]["env"]
        references = [variable["valueFrom"]["secretKeyRef"] for variable in variables if "valueFrom" in variable]
        used[name.split(".")[0]] = {reference["name"] for reference in references}
    assert used == {
        "TrainingRuntime/darkroom-train": {"store-key", "hub-key", "wandb-key"},
        "Deployment/dr-darkroom-exporter": {"store-key"},
        "Pod/dr-darkroom-test-access": {"store-key"},
        "Pod/dr-darkroom-test-help": set(),
        "Job/dr-darkroom-deploy": set(),
        "Job/dr-darkroom-withdraw": set(),
        "Job/dr-darkroom-end-trainings": set(),
    }


def test_images_are_pinned_by_digest_when_given(every_preset: Manifest, render: Render, pod_specs: PodSpecs) -> None:
    for name, pod in pod_specs(render(every_preset)).items():
        [container] = pod["containers"]
        one = "gpu@sha256:" + "b" * 64 if name.startswith("TrainingRuntime") else "darkroom@sha256:" + "a" * 64
        assert container["image"].endswith(one)


def test_a_tag_is_the_release_of_the_chart_unless_given(render: Render, pod_specs: PodSpecs) -> None:
    images = {pod["containers"][0]["image"] for pod in pod_specs(render({})).values()}
    assert images == {"darkroom:0.1.0", "darkroom-gpu:0.1.0"}
    assert "darkroom:v7" in {
        pod["containers"][0]["image"] for pod in pod_specs(render({"image": {"tag": "v7"}})).values()
    }


def test_what_a_gang_writes_has_a_place_and_a_limit(everything: Manifest, render: Render, pod_specs: PodSpecs) -> None:
    for name, pod in pod_specs(render(everything)).items():
        empty = [volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume]
        assert empty, name
        assert all("sizeLimit" in volume for volume in empty), name
        [container] = pod["containers"]
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert variables["HOME"] in places
        assert variables.get("TMPDIR", "/tmp") in places


def test_signals_reach_the_program_and_not_a_shell(everything: Manifest, render: Render, pod_specs: PodSpecs) -> None:
    for pod in pod_specs(render(everything)).values():
        [container] = pod["containers"]
        assert container["command"][0] in ("python", "darkroom")
        assert not {"sh", "bash", "/bin/sh", "-c"} & set(container["command"])
