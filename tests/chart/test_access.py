"""The chart before a real API: what it looks up on an upgrade, and what `helm test` asks from inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import Chart
from helm_python.config import Config
from helm_python.errors import HelmError

from tests.cluster.openapi import installed

Manifest = dict[str, Any]

CHART = Path(__file__).parents[2] / "charts" / "darkroom"
SERVED = {
    "trainer.kubeflow.org/v1alpha1": ("trainingruntimes", "TrainingRuntime"),
    "kueue.x-k8s.io/v1beta2": ("localqueues", "LocalQueue"),
}


@dataclass
class Cluster:
    """As much of a Kubernetes API, and of Kubeflow's, as the chart speaks with.

    Attributes:
        objects: By their paths.
        refused: Verbs and resources that the account may not do, such as ``delete trainjobs``.
        asked: What came in, as method, path and body.
        has_policy: Whether the release's admission policy is in force.
        operators: What it says of the operators, by path.
    """

    objects: dict[str, Manifest] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, Manifest]] = field(default_factory=list)
    operators: dict[str, Manifest] = field(default_factory=installed)
    port: int = 0
    has_policy: bool = True

    def answer(self, method: str, path: str, body: Manifest) -> tuple[int, Manifest]:
        self.asked.append((method, path, body))
        place = path.partition("?")[0]
        version = place.removeprefix("/apis/")
        if version in SERVED:
            plural, kind = SERVED[version]
            resource = {"name": plural, "kind": kind, "namespaced": True, "verbs": ["get"]}
            return 200, {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": version,
                "resources": [resource],
            }
        if place.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            what = f"{asked['verb']} {asked['resource']}"
            return 201, {**body, "status": {"allowed": what not in self.refused}}
        if place.endswith("/trainjobs") and method == "POST":
            if self.has_policy and "serviceAccountName" in json.dumps(body):
                message = "ValidatingAdmissionPolicy 'dr-darkroom-trainjobs' denied the request: no account"
                return 422, {
                    "kind": "Status",
                    "status": "Failure",
                    "reason": "Invalid",
                    "code": 422,
                    "message": message,
                }
            return 201, body
        if place == "/apis/v2beta1/healthz":
            return 200, {}
        if place == "/apis/v1beta1/healthz":
            return 200, {"tag_name": "2.17.0"}
        if place in self.operators:
            return 200, self.operators[place]
        if place in self.objects:
            return 200, self.objects[place]
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}

    @property
    def kubeconfig(self) -> str:
        context = {"cluster": "here", "user": "me", "namespace": "kubeflow"}
        return yaml.safe_dump(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "me", "user": {}}], "contexts": [{"name": "here", "context": context}],
            }
        )  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    state = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            status, answer = state.answer(self.command, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def runtime(restarts: int) -> Manifest:
    spec = {"template": {"spec": {"failurePolicy": {"maxRestarts": restarts}}}}
    version = "trainer.kubeflow.org/v1alpha1"
    return {"apiVersion": version, "kind": "TrainingRuntime", "metadata": {"name": "darkroom-train"}, "spec": spec}


def local_queue(target: str) -> Manifest:
    version = "kueue.x-k8s.io/v1beta2"
    return {
        "apiVersion": version,
        "kind": "LocalQueue",
        "metadata": {"name": "darkroom"},
        "spec": {"clusterQueue": target},
    }


def upgrade(cluster: Cluster, **values: Any) -> dict[str, str]:
    with Chart.load(CHART) as chart, Config(kubeconfig_content=cluster.kubeconfig, namespace="kubeflow") as config:
        return config.render(chart, values, name="dr", namespace="kubeflow", is_upgrade=True)


def test_what_can_never_change_is_refused_before_anything_is_changed(cluster: Cluster) -> None:
    base = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/kubeflow/trainingruntimes"
    cluster.objects[f"{base}/darkroom-train"] = runtime(10)
    queues = "/apis/kueue.x-k8s.io/v1beta2/namespaces/kubeflow/localqueues"
    cluster.objects[f"{queues}/darkroom"] = local_queue("darkroom")
    assert upgrade(cluster)
    with pytest.raises(
        HelmError, match=r"trainer\.maxRestarts is 3.*is 10 and can never change.*another trainer\.runtime"
    ):
        upgrade(cluster, trainer={"maxRestarts": 3})
    assert upgrade(cluster, trainer={"maxRestarts": 3, "runtime": "darkroom-train-3"})
    with pytest.raises(HelmError, match=r"queue\.clusterQueue is shared.*draws from darkroom.*another queue\.name"):
        upgrade(cluster, queue={"clusterQueue": "shared"})
    assert upgrade(cluster, queue={"clusterQueue": "shared", "name": "darkroom-shared"})


def check_access(cluster: Cluster, folder: Path, workdir: str, *more: str) -> subprocess.CompletedProcess[str]:
    config = folder / "kubeconfig"
    config.write_text(cluster.kubeconfig)
    command = [sys.executable, str(CHART / "files" / "check_access.py"), "--namespace", "kubeflow"]
    command += ["--runtime", "darkroom-train", "--kfp", f"http://127.0.0.1:{cluster.port}", "--workdir", workdir, *more]
    environment = {
        **os.environ,
        "KUBECONFIG": str(config),
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_helm_test_passes_where_everything_is_granted(cluster: Cluster, tmp_path: Path) -> None:
    done = check_access(cluster, tmp_path, str(tmp_path / "work"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 5
    assert "warning" not in done.stdout
    [dry] = [(path, body) for method, path, body in cluster.asked if method == "POST" and "/trainjobs" in path]
    assert "dryRun=All" in dry[0]  # nothing is made
    assert dry[1]["spec"]["runtimeRef"]["name"] == "darkroom-train"


@pytest.mark.parametrize("has_policy", [True, False])
def test_it_sees_whether_the_policy_denies_what_it_must(cluster: Cluster, tmp_path: Path, has_policy: bool) -> None:
    cluster.has_policy = has_policy
    done = check_access(cluster, tmp_path, str(tmp_path / "work"), "--policy")
    assert done.returncode == (0 if has_policy else 1), done.stdout + done.stderr
    word = "ok      " if has_policy else "FAILED  "
    assert f"{word}a TrainJob whose pods ask for another account is denied" in done.stdout
    assert all("dryRun=All" in path for method, path, _ in cluster.asked if method == "POST" and "/trainjobs" in path)


def test_it_asks_for_just_the_rights_that_the_chart_grants(cluster: Cluster, tmp_path: Path) -> None:
    check_access(cluster, tmp_path, str(tmp_path / "work"))
    reviews = [body["spec"]["resourceAttributes"] for _, path, body in cluster.asked if "selfsubject" in path]
    asked = {(r.get("group", ""), r["resource"], r.get("subresource", ""), r["verb"]) for r in reviews}
    assert all(review["namespace"] == "kubeflow" for review in reviews)
    with Chart.load(CHART) as chart:
        texts = chart.render({}, name="dr", namespace="kubeflow")["darkroom/templates/rbac.yaml"]
    roles = {m["metadata"]["name"]: m for m in yaml.safe_load_all(texts) if m and m["kind"] == "Role"}
    granted = {
        (group, *resource.partition("/")[::2], verb)
        for rule in roles["dr-darkroom-launcher"]["rules"] for group in rule["apiGroups"]
        for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    assert asked == granted


def test_it_says_what_is_missing_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    cluster.refused = {"delete trainjobs", "list events"}
    done = check_access(cluster, tmp_path, "s3://")
    assert done.returncode == 1
    assert "not allowed: delete trainjobs, list events" in done.stdout
    assert done.stdout.count("FAILED") == 2  # the place is none, either
    assert done.stdout.count("ok ") == 3


def test_it_fails_for_a_release_that_is_known_not_to_work(cluster: Cluster, tmp_path: Path) -> None:
    cluster.operators = installed({"Kueue": "0.17.3", "JobSet": "0.13.0"})
    done = check_access(cluster, tmp_path, str(tmp_path / "work"))
    assert done.returncode == 1
    assert "FAILED  the cluster's operators are known to work: Kueue 0.17.3 admitted TrainJobs" in done.stdout
    assert "warning JobSet 0.13.0 is not tested" in done.stdout
