"""What pods tell comes through the kubernetes client, of the step that was asked for, and shows what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.errors import ConfigError
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.kubeflow.logs import RunLog, show
from tests.cluster.api_server import NAMESPACE, ApiServer, Refusal

RUN = "5c3d"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    api = ApiServer()
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{api._port}"}}],
        "users": [{"name": "me", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield api
    api.stop()


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def pod(api: ApiServer, name: str, way: str, log: str, run: str = RUN) -> None:
    about = {"labels": {"pipeline/runid": run}, "annotations": {"workflows.argoproj.io/node-name": way}}
    api.store.create("pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **about}})
    api.logs[name] = log


def shown_lines(step: str, run: Storage | None = None, follow: bool = False, ended: bool = True) -> list[str]:
    lines: list[str] = []
    show(RUN, run, step, 40, NAMESPACE, follow, lambda: ended, lines.append, lambda _: None)
    return lines


def test_the_pods_of_a_step_are_told_from_the_others(cluster: ApiServer) -> None:
    pod(cluster, "a", "darkroom-x.root.exit-handler-1.encode.for-loop-2.latents(0:01).executor", "one\n\x1b[31mtwo\n")
    pod(cluster, "b", "darkroom-x.root.exit-handler-1.encode.for-loop-2.latents-driver", "the driver\n")
    pod(cluster, "c", "darkroom-x.root.exit-handler-1.train(1).executor", "training\n")
    pod(cluster, "d", "darkroom-y.root.latents(0:01).executor", "of another run\n", run="other")
    assert shown_lines("latents") == ["--- a", "one", "\\x1b[31mtwo"]
    assert shown_lines("train") == ["--- c", "training"]


def test_where_pods_may_not_be_read_the_records_still_speak(cluster: ApiServer, run: Storage) -> None:
    def refuse(method: str, path: str) -> None:
        raise Refusal(403, "Forbidden", "pods is forbidden")

    cluster.before = refuse
    with pytest.raises(ConfigError, match="Forbidden"):
        shown_lines("index")
    run.write_json("steps/index.json", {"status": "done", "result": {"images": 3}})
    first, second = shown_lines("index", run)
    assert first == "index: done {'images': 3}"
    assert second.startswith("the pods' own logs cannot be read: ")


def test_a_log_reads_on_and_leaves_what_is_not_whole(run: Storage) -> None:
    log = RunLog(run)
    assert log.read() == []
    run.write("metrics.jsonl", b'{"step": 1, "loss": null}\n{"step": 2, ')
    assert log.read() == ["step 1"]
    run.write("metrics.jsonl", b'{"step": 1, "loss": null}\n{"step": 2, "loss": 0.25}\nnonsense\n')
    run.write("events.jsonl", b'{"event": "hung", "rank": 3}\n{"event": "spot-notice"}\n')
    assert log.read() == ["hung: rank 3", '{"event": "spot-notice"}', "step 2, loss 0.25"]
    assert log.read() == []
    run.write("metrics.jsonl", b'{"step": 1}\n')
    assert log.read() == ["step 1"], "the training was begun anew"


def test_following_ends_with_the_run_and_misses_nothing(run: Storage) -> None:
    run.write("metrics.jsonl", b'{"step": 1}\n')
    lines: list[str] = []
    answers = iter([False, False, True])

    def ended() -> bool:
        over = next(answers)
        steps = run.read("metrics.jsonl").count(b"\n")
        run.write("metrics.jsonl", b"".join(b'{"step": %d}\n' % step for step in range(1, steps + 2)))
        return over

    show(RUN, run, "train", 40, NAMESPACE, True, ended, lines.append, lambda _: None)
    assert lines == ["step 1", "step 2", "step 3", "step 4"]
