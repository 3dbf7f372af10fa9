"""Check from inside the cluster that a run will find what it needs; prints one line per check, exits 1 if any failed.

python check_access.py --namespace NAMESPACE --runtime RUNTIME --kfp URL --workdir URL [--policy]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What the launcher asks of the Kubernetes API: group, resource, subresource, verbs.
RIGHTS = (
    ("trainer.kubeflow.org", "trainjobs", "", ("create", "get", "list", "watch", "patch", "delete")),
    ("jobset.x-k8s.io", "jobsets", "", ("get",)),
    ("kueue.x-k8s.io", "workloads", "", ("list",)),
    ("", "pods", "", ("get", "list", "watch")),
    ("", "pods", "log", ("get",)),
    ("", "events", "", ("list",)),
)
_SECONDS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks and return 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--namespace", "--runtime", "--kfp", "--workdir"):
        parser.add_argument(name, required=True)
    parser.add_argument("--policy", action="store_true", help="the release has an admission policy")
    given = parser.parse_args(argv)
    checks: list[tuple[str, Callable[[], object]]] = [
        (f"Kubeflow Pipelines answers at {given.kfp}", lambda: _reach(given.kfp)),
        (f"{given.workdir} can be listed", lambda: _list(given.workdir)),
        (f"namespace {given.namespace} grants what the launcher needs", lambda: _rights(given.namespace)),
        ("the cluster's operators are known to work", lambda: _operators(given.kfp)),
        (f"Kubeflow Trainer takes a TrainJob for {given.runtime}", lambda: _dry_run(given.namespace, given.runtime)),
    ]
    if given.policy:
        what = "a TrainJob whose pods ask for another account is denied"
        checks.append((what, lambda: _denied(given.namespace, given.runtime)))
    passed = [_passes(what, check) for what, check in checks]
    return 0 if all(passed) else 1


def _passes(what: str, check: Callable[[], object]) -> bool:
    try:
        check()
    except Exception as error:
        print(f"FAILED  {what}: {error}", flush=True)  # noqa: T201 - helm test --logs shows it
        return False
    print(f"ok      {what}", flush=True)  # noqa: T201
    return True


def _reach(endpoint: str) -> None:
    with urllib.request.urlopen(f"{endpoint}/apis/v2beta1/healthz", timeout=_SECONDS) as answer:  # noqa: S310
        answer.read()


def _operators(endpoint: str) -> None:
    """Compare what is installed with what Darkroom was tested with; says what is not known, fails for what is bad."""
    from pipeline.launch.checks.operators import judge, needs, reader

    try:
        with urllib.request.urlopen(f"{endpoint}/apis/v1beta1/healthz", timeout=_SECONDS) as answer:  # noqa: S310
            release = str(json.load(answer).get("tag_name") or "")
    except (OSError, ValueError):
        release = ""
    findings = list(judge(reader(_api().ApiClient()), release, needs("trainjob", "any")))
    for finding in findings:
        if not finding.is_error:
            print(f"warning {finding.text}", flush=True)  # noqa: T201
    if errors := [finding.text for finding in findings if finding.is_error]:
        raise RuntimeError("; ".join(errors))


def _list(workdir: str) -> None:
    from components.storage.open import open_storage

    next(iter(open_storage(workdir).list("runs")), None)


def _api() -> Any:
    from kubernetes import client, config

    from pipeline.launch.api import load_account

    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        settings = client.Configuration()
        load_account(settings)
        client.Configuration.set_default(settings)
    else:
        config.load_config()
    return client


def _rights(namespace: str) -> None:
    missing = list(_missing(_api(), namespace))
    if missing:
        raise PermissionError(f"not allowed: {', '.join(missing)}")


def _missing(client: Any, namespace: str) -> Iterator[str]:
    reviews = client.AuthorizationV1Api()
    for group, resource, subresource, verbs in RIGHTS:
        for verb in verbs:
            asked = client.V1ResourceAttributes(
                group=group, resource=resource, subresource=subresource, verb=verb, namespace=namespace
            )
            review = client.V1SelfSubjectAccessReview(
                spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked)
            )
            answer = reviews.create_self_subject_access_review(review, _request_timeout=_SECONDS)
            if not answer.status.allowed:
                yield f"{verb} {resource}{'/' if subresource else ''}{subresource}"


def _denied(namespace: str, runtime: str) -> None:
    """Ask for what the launcher may not have; nothing is made, whatever the answer."""
    pod = {"spec": {"serviceAccountName": "default"}}
    jobs = [{"name": "node", "template": {"spec": {"template": pod}}}]
    change = {"template": {"spec": {"replicatedJobs": jobs}}}
    patch = {"manager": "darkroom.dev/launcher", "trainingRuntimeSpec": change}
    try:
        _dry_run(namespace, runtime, [patch])
    except _api().ApiException as error:
        if "ValidatingAdmissionPolicy" in str(error.body):
            return
        raise
    raise PermissionError("it is allowed: the admission policy is not in force")


def _dry_run(namespace: str, runtime: str, patches: Sequence[dict[str, Any]] = ()) -> None:
    """Let the real webhooks judge a TrainJob that is never made."""
    job: dict[str, Any] = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"generateName": "darkroom-test-"},
        "spec": {"runtimeRef": {"kind": "TrainingRuntime", "name": runtime}, "suspend": True},
    }
    if patches:
        job["spec"]["runtimePatches"] = list(patches)
    _api().CustomObjectsApi().create_namespaced_custom_object(
        "trainer.kubeflow.org", "v1alpha1", namespace, "trainjobs", job, dry_run="All", _request_timeout=_SECONDS
    )


if __name__ == "__main__":
    sys.exit(main())
