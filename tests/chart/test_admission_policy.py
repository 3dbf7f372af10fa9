"""What the launcher may ask for in a TrainJob: the policy's own CEL, evaluated by Google's implementation of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from cel_expr_python import cel

from pipeline.config import resolve
from pipeline.launch.context import TrainerArguments
from pipeline.launch.render import Owner, render
from pipeline.placement import PRESETS
from pipeline.recipe import recipes

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

LAUNCHER = "system:serviceaccount:kubeflow:dr-darkroom-launcher"
GKE = ("placement.cloud=gke",)
JOBSET = ("runtimePatches", 0, "trainingRuntimeSpec", "template", "spec")
POD = (*JOBSET, "replicatedJobs", 0, "template", "spec", "template")


class Policy(NamedTuple):
    """The policy as an API server applies it."""

    spec: Manifest

    def problems(self, job: Manifest, old: Manifest | None = None, user: str = LAUNCHER) -> list[str]:
        """Return the messages with which a request is denied; empty if it is allowed or none of the policy's."""
        request = {"operation": "CREATE" if old is None else "UPDATE", "userInfo": {"username": user}}
        known: dict[str, Any] = {"object": job, "oldObject": old, "request": request, "variables": {}}
        if not all(evaluate(one["expression"], known) is True for one in self.spec["matchConditions"]):
            return []
        try:
            for variable in self.spec["variables"]:
                known["variables"][variable["name"]] = evaluate(variable["expression"], known)
        except Exception as error:  # failurePolicy: Fail
            return [str(error)]
        return [one["message"] for one in self.spec["validations"] if evaluate(one["expression"], known) is not True]


def evaluate(expression: str, known: Manifest) -> Any:
    environment = cel.NewEnv(variables=dict.fromkeys(known, cel.Type.DYN))
    return environment.compile(expression).eval(data=known).plain_value()


@pytest.fixture(scope="module")
def policy(render: Render) -> Policy:
    manifests = render({"secrets": {"s3": "store-key"}, "trainer": {"secrets": ["wandb"]}})
    [found] = [manifest for manifest in manifests if manifest["kind"] == "ValidatingAdmissionPolicy"]
    [binding] = [manifest for manifest in manifests if manifest["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert binding["spec"]["policyName"] == found["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Deny"]
    assert found["spec"]["failurePolicy"] == "Fail"
    return Policy(found["spec"])


def job(recipe: str = "sd15-full", pool: Any = "spot", overrides: tuple[str, ...] = GKE) -> Manifest:
    settings = resolve(recipe, list(overrides), "s3://bucket/images")
    data = ("workdir:base", "key", "digest", settings.seed, settings.train)
    arguments = TrainerArguments(settings.run, "s3://bucket/work", *data)
    environment = {"AWS_REGION": "eu-west-1"}
    return render(arguments, settings.placement, pool, 2, 1, Owner("flow", "uid"), environment)


@pytest.mark.parametrize("cloud", PRESETS)
def test_every_job_of_the_launcher_is_allowed(cloud: str, policy: Policy) -> None:
    for recipe in recipes():
        for pool in ("spot", "on-demand"):
            assert policy.problems(job(recipe, pool, (f"placement.cloud={cloud}",))) == []
    secret = (*GKE, "placement.secret_env={WANDB_API_KEY: wandb/key}")
    assert policy.problems(job(overrides=secret)) == []


def test_the_job_that_helm_test_tries_is_allowed(policy: Policy) -> None:
    spec = {"runtimeRef": {"kind": "TrainingRuntime", "name": "darkroom-train"}, "suspend": True}
    assert policy.problems({"spec": spec}) == []


def set_at(job: Manifest, path: tuple[Any, ...], value: Any) -> Manifest:
    changed = copy.deepcopy(job)
    target = changed["spec"]
    for key in path[:-1]:
        target = target[key]
    if path[-1] == "+":
        target.append(value)
    else:
        target[path[-1]] = value
    return changed


NODES = "only choose the nodes of a pod"
SECRETS = "from these Secrets alone (store-key, wandb)"
PODS = "only patch the pods of a runtime"
SECRET_VOLUME = [{"name": "x", "secret": {"secretName": "other"}}]
OFFENCES: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "another account": ((*POD, "spec", "serviceAccountName"), "kubeflow-admin", NODES),
    "a Secret as a volume": ((*POD, "spec", "volumes"), SECRET_VOLUME, NODES),
    "a folder of the node": ((*POD, "spec", "volumes"), [{"name": "x", "hostPath": {"path": "/"}}], NODES),
    "a container": ((*POD, "spec", "initContainers"), [{"name": "x"}], NODES),
    "a container's variables": ((*POD, "spec", "containers"), [{"name": "node", "env": []}], NODES),
    "a pull secret": ((*POD, "spec", "imagePullSecrets"), [{"name": "x"}], NODES),
    "another user": ((*POD, "spec", "securityContext"), {"runAsUser": 0}, NODES),
    "labels of other pods": ((*POD, "metadata", "labels", "app.kubernetes.io/component"), "pipeline", "label pods"),
    "annotations": ((*POD, "metadata", "annotations"), {"x": "y"}, "label pods"),
    "a Secret as a variable": (
        ("trainer", "env", "+"), {"name": "X", "valueFrom": {"secretKeyRef": {"name": "other", "key": "k"}}}, SECRETS
    ),
    "a ConfigMap as a variable": (
        ("trainer", "env", "+"), {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "kube", "key": "k"}}}, SECRETS
    ),
    "another runtime": (("runtimeRef", "name"), "other", "TrainingRuntime darkroom-train"),
    "a runtime of the cluster": (("runtimeRef", "kind"), "ClusterTrainingRuntime", "TrainingRuntime darkroom-train"),
    "an initializer": (("initializer",), {"dataset": {"secretRef": {"name": "other"}}}, "initializer"),
    "overrides of an older Trainer": (("podTemplateOverrides",), [{"spec": {}}], "podTemplateOverrides"),
    "another manager": (("runtimePatches", 0, "manager"), "kueue.x-k8s.io/manager", PODS),
    "a second patch": (("runtimePatches", "+"), {"manager": "x"}, PODS),
    "another job of the runtime": ((*JOBSET, "replicatedJobs", 0, "name"), "launcher", PODS),
    "the JobSet's annotations": (("runtimePatches", 0, "trainingRuntimeSpec", "template", "metadata"), {}, PODS),
    "what a later Trainer may have": ((*JOBSET, "replicatedJobs", 0, "template", "spec", "backoffLimit"), 9, PODS),
    "a patch without anything": (("runtimePatches", 0, "trainingRuntimeSpec"), {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFENCES)
def test_whatever_else_a_job_may_ask_for_is_denied(name: str, policy: Policy) -> None:
    path, value, message = OFFENCES[name]
    problems = policy.problems(set_at(job(), path, value))
    assert problems, "it is allowed"
    assert any(message in problem for problem in problems), problems


def test_a_job_that_kueue_has_admitted_is_taken_over_and_nothing_more(policy: Policy) -> None:
    admitted = set_at(job(), ("runtimePatches", "+"), {"manager": "kueue.x-k8s.io/manager"})
    taken_over = {**admitted, "metadata": {**admitted["metadata"], "annotations": {"darkroom.dev/launcher": "new"}}}
    assert policy.problems(taken_over, old=admitted) == []
    assert policy.problems(set_at(taken_over, (*POD, "spec", "serviceAccountName"), "x"), old=admitted)


def test_others_are_judged_by_their_own_rules(policy: Policy) -> None:
    foreign = set_at(job(), (*POD, "spec", "serviceAccountName"), "x")
    assert policy.problems(foreign, user="system:serviceaccount:kueue-system:kueue-controller-manager") == []
    assert policy.problems(foreign, user="system:serviceaccount:kubeflow:dr-darkroom-pipeline")


def test_it_can_be_left_to_others(render: Render) -> None:
    kinds = {manifest["kind"] for manifest in render({"admissionPolicy": {"create": False}})}
    assert not {kind for kind in kinds if kind.startswith("ValidatingAdmissionPolicy")}
