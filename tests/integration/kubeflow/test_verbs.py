"""The verbs for a cluster, through Kubeflow's own client, against its API in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp
import pytest
import yaml

from components.accounting.ledger import LEDGER
from components.errors import ConfigError
from components.storage.open import open_storage
from pipeline.cli import main
from pipeline.config import resolve
from pipeline.kubeflow import client
from pipeline.kubeflow.calls import TOKEN, KubeflowAway
from pipeline.kubeflow.client import Access
from pipeline.kubeflow.records import Run, Task
from pipeline.kubeflow.tables import run_rows, training_rows
from tests.cluster.kubeflow_api import KubeflowApi, Refusal

pytestmark = pytest.mark.usefixtures("quick_compiler")

DEPLOYMENT = yaml.safe_load((Path(__file__).parents[2] / "deploy.yaml").read_text())
NIGHTLY = {"name": "nightly", "cron": "0 3 * * *", "recipe": "demo", "workdir": "s3://bucket/darkroom"}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees a cluster, a token or a kubeconfig of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST", TOKEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowApi]:
    served = KubeflowApi()
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", served.url)
    yield served
    served.close()


@pytest.fixture
def release(api: KubeflowApi, tmp_path: Path) -> Release:
    return Release(api, tmp_path / "deploy.yaml")


class Release:
    def __init__(self, api: KubeflowApi, file: Path) -> None:
        self.api = api
        self.file = file

    def deploy(self, *schedules: dict[str, Any], **changed: Any) -> int:
        values = {**DEPLOYMENT, "endpoint": self.api.url, "schedules": list(schedules), **changed}
        self.file.write_text(yaml.safe_dump(values))
        return main(["deploy", "--file", str(self.file), "--timeout", "0"])


def recurring(api: KubeflowApi) -> list[dict[str, Any]]:
    return list(api.tables["recurring_runs"].values())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert "WARNING" not in err
    return out + err


def changes(api: KubeflowApi) -> list[str]:
    return [f"{method} {path}" for method, path in api.seen if method != "GET"]


def test_deploying_brings_about_what_is_said_and_again_nothing(release: Release) -> None:
    assert release.deploy(NIGHTLY) == 0
    (one,) = recurring(release.api)
    (version,) = release.api.tables["pipeline_versions"].values()
    assert one["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert version["display_name"].startswith("ir-")
    assert one["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (one["no_catchup"], one["max_concurrency"], one["status"]) == (True, "1", "ENABLED")
    assert one["service_account"] == "darkroom-pipeline"
    parameters = {"recipe": "demo", "workdir": "s3://bucket/darkroom", "source": "recipe", "overrides": ["none"]}
    assert one["runtime_config"]["parameters"] == parameters

    release.api.seen.clear()
    assert release.deploy(NIGHTLY) == 0
    assert changes(release.api) == []


def test_where_users_are_kept_apart_every_request_says_whose_it_is(release: Release) -> None:
    release.api.multi_user = True
    assert release.deploy(NIGHTLY, namespace="team") == 0
    assert {one["namespace"] for one in release.api.tables["experiments"].values()} == {"team"}
    assert {one["namespace"] for one in release.api.tables["pipelines"].values()} == {"team"}
    team = ["--namespace", "team"]
    assert main(["submit", "--recipe", "demo", "--workdir", "s3://b/w", *team]) == 0
    assert main(["status", "demo-", *team]) == 0
    assert main(["schedule", "ls", *team]) == 0
    assert release.deploy(namespace="team") == 0
    assert recurring(release.api) == []


def test_a_recurring_run_is_replaced_when_it_changes_and_only_then(release: Release) -> None:
    other = {**NIGHTLY, "name": "other"}
    assert release.deploy(NIGHTLY, other) == 0
    before = {one["display_name"]: one["recurring_run_id"] for one in recurring(release.api)}
    assert release.deploy({**NIGHTLY, "overrides": ["train.steps=400"]}, other) == 0
    after = {one["display_name"]: one["recurring_run_id"] for one in recurring(release.api)}
    assert after["other"] == before["other"]
    assert after["nightly"] != before["nightly"]
    assert {one["status"] for one in recurring(release.api)} == {"ENABLED"}
    assert release.api.most_enabled == 1

    assert release.deploy({**NIGHTLY, "overrides": ["train.steps=400"], "enabled": False}) == 0
    (one,) = recurring(release.api)
    assert (one["recurring_run_id"], one["status"]) == (after["nightly"], "DISABLED")


def test_new_images_make_a_new_version_and_pin_the_recurring_runs_to_it(release: Release) -> None:
    assert release.deploy(NIGHTLY) == 0
    assert release.deploy(NIGHTLY, image="registry.example/darkroom@sha256:" + 64 * "c") == 0
    newest = list(release.api.tables["pipeline_versions"])[-1]
    assert len(release.api.tables["pipeline_versions"]) == 2
    assert [one["pipeline_version_reference"]["pipeline_version_id"] for one in recurring(release.api)] == [newest]


def test_a_refused_replacement_leaves_the_old_one_running(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.deploy(NIGHTLY) == 0

    def refuse(method: str, path: str) -> None:
        if (method, path) == ("POST", "/recurringruns"):
            raise Refusal(400, "the quota is used up")

    release.api.before = refuse
    assert release.deploy({**NIGHTLY, "cron": "0 4 * * *"}) == 78
    assert "400 the quota is used up" in said(capsys)
    assert [one["status"] for one in recurring(release.api)] == ["ENABLED"]


def test_withdrawing_removes_what_the_release_made_and_nothing_else(release: Release) -> None:
    assert release.deploy(NIGHTLY, {**NIGHTLY, "name": "other"}, {**NIGHTLY, "name": "third"}) == 0
    mine = ["schedule", "set", "mine", "--cron", "0 5 * * *", "--recipe", "demo", "--workdir", "s3://b/w"]
    assert main([*mine, "--namespace", "kubeflow"]) == 0
    assert release.deploy(withdraw=True) == 0
    assert [one["display_name"] for one in recurring(release.api)] == ["mine"]


@pytest.mark.parametrize(
    ("schedule", "parts"),
    [
        ({"recipe": "dmeo"}, ("nightly", "'dmeo'")),
        ({"overrides": ["train.stepz=3"]}, ("nightly", "train.stepz", "train.steps?")),
        ({"workdir": "/tmp/here"}, ("/tmp/here", "s3://bucket/prefix")),
        ({"cron": "61 3 * * *"}, ("schedules.0.cron", "'61'", "0-59")),
        ({"name": "Nightly"}, ("schedules.0.name", "'Nightly'")),
        ({"kron": "0 3 * * *"}, ("schedules.0.kron", "schedules.0.cron?")),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_done(
    release: Release, schedule: dict[str, Any], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.deploy({**NIGHTLY, **schedule}) == 78
    told = said(capsys)
    assert all(part in told for part in parts)
    assert release.api.seen == []


def test_a_run_is_submitted_to_the_newest_version_or_to_one_of_its_own(
    release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    submit = ["submit", "--recipe", "demo", "--set", "seed=3", "--workdir", "s3://b/w"]
    assert main(submit) == 78
    assert "'darkroom'" in said(capsys)
    assert release.deploy() == 0
    assert main(submit) == 0
    (run,) = release.api.tables["runs"].values()
    assert run["runtime_config"]["parameters"] == {
        "recipe": "demo", "workdir": "s3://b/w", "source": "recipe", "overrides": ["seed=3"]
    }  # fmt: skip
    assert run["display_name"] == resolve("demo", ["seed=3"]).run
    assert run["service_account"] == "darkroom-pipeline"
    told = said(capsys)
    assert f"next       darkroom status {run['run_id']}" in told
    assert f"{release.api.url}/#/runs/details/{run['run_id']}" in told

    (tmp_path / "mine.yaml").write_text("name: mine\ningest: {source: s3://b/i}\npods: {heavy: {gpus: 2}}\n")
    assert main(["submit", "--recipe", "mine.yaml", "--file", str(release.file)]) == 0
    last = list(release.api.tables["runs"].values())[-1]
    assert resolve(last["runtime_config"]["parameters"]["recipe"]).name == "mine"
    assert last["pipeline_version_reference"] != run["pipeline_version_reference"]
    assert main(submit) == 0
    last = list(release.api.tables["runs"].values())[-1]
    assert last["pipeline_version_reference"] == run["pipeline_version_reference"], "that of the release"


def test_wrong_settings_are_refused_before_kubeflow_is_asked(
    api: KubeflowApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--recipe", "demo", "--set", "train.stepz=3"]) == 78
    assert main(["submit", "--recipe", "demo", "--workdir", "here"]) == 78
    assert main(["submit", "--recipe", "finetune"]) == 78
    told = said(capsys)
    assert "train.steps?" in told
    assert "source 'images' of finetune: each step runs on a node of its own; expected s3://bucket/prefix" in told
    assert api.seen == []


def test_a_kubeflow_that_is_known_not_to_work_is_rejected_by_name(
    release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    release.api.release = "1.8.5"
    assert release.deploy() == 78
    assert "Kubeflow Pipelines 1.x has no API v2beta1" in said(capsys)
    assert changes(release.api) == []
    release.api.release = "2.16.0"
    assert release.deploy() == 0
    assert "warning: Kubeflow Pipelines 2.16.0 is not tested" in capsys.readouterr().err
    assert main(["submit", "--recipe", "demo", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["version"].startswith("ir-"), "warnings stay out of what scripts read"
    assert "2.16.0 is not tested" in err


def test_a_version_with_too_little_pods_is_not_taken_for_a_run(
    release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert release.deploy() == 0
    submit = ["submit", "--recipe", "sd15-full", "--source", "s3://b/i", "--workdir", "s3://b/w"]
    assert main(submit) == 78
    told = said(capsys)
    assert "caption, evaluate, latents: no GPU, needed 1 nvidia.com/gpu" in told
    assert "darkroom submit --file deploy.yaml" in told
    assert release.api.tables["runs"] == {}

    assert main([*submit, "--file", str(release.file)]) == 0
    fitting = list(release.api.tables["pipeline_versions"])[-1]
    assert main(submit) == 0
    assert main(["submit", "--recipe", "demo"]) == 0
    used = [one["pipeline_version_reference"]["pipeline_version_id"] for one in release.api.tables["runs"].values()]
    assert used[:2] == [fitting, fitting], "the version that was made for the first run is taken for the second"
    assert used[2] != fitting
    assert main([*submit, "--set", "pods.heavy.gpus=2"]) == 78

    # Another release's images are not those of this one.
    assert release.deploy(image="registry.example/darkroom@sha256:" + 64 * "c") == 0
    assert main(submit) == 78


def test_a_version_that_says_nothing_of_its_pods_is_taken_with_a_warning(
    release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.deploy() == 0
    for version in release.api.tables["pipeline_versions"].values():
        configure = version["pipeline_spec"]["components"]["comp-exit-handler-1"]["dag"]["tasks"]["configure"]
        del configure["inputs"]["parameters"]["pods"]
    assert main(["submit", "--recipe", "sd15-full", "--source", "s3://b/i"]) == 0
    assert "does not say what its pods have" in said(capsys)


def test_waiting_ends_with_the_run_and_tells_how(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    release.deploy()

    def fail(method: str, path: str) -> None:
        for run in release.api.tables["runs"].values():
            run |= {"state": "FAILED", "error": {"code": 1, "message": "out of luck"}}

    release.api.before = fail
    assert main(["submit", "--recipe", "demo", "--workdir", "s3://b/w", "--wait"]) == 70
    assert "out of luck" in said(capsys)
    assert main(["submit", "--recipe", "demo", "--workdir", "s3://b/w", "--wait", "--json"]) == 70
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "FAILED"
    assert document["dashboard"].endswith(document["id"])


def test_status_logs_and_stop_find_a_run_by_how_it_begins(
    release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    release.deploy()
    for number in range(5):
        main(["submit", "--recipe", "demo", "--workdir", "s3://b/w", "--name", f"run-{number}"])
    said(capsys)
    assert main(["status"]) == 0
    assert [text.split()[0] for text in said(capsys).splitlines()[1:]] == [f"run-{n}" for n in (4, 3, 2, 1, 0)]

    folder = open_storage(str(tmp_path / "work")).child(f"runs/{resolve('demo').run}")
    folder.write_json("config.json", resolve("demo").model_dump(mode="json"))
    lines = (f'{{"step": {step}, "loss": 0.5, "samples_per_second": 64.0}}\n' for step in (1, 2, 3))
    folder.write("metrics.jsonl", "".join(lines).encode() + b'{"step": 4, "lo')
    folder.write("events.jsonl", b'{"event": "attempt-started", "attempt": 1}\n')
    folder.write("steps/index.json", b'{"status": "failed", "error": "\\u001b[31mred"}')
    assert main(["status", "run-3", "--workdir", str(tmp_path / "work")]) == 0
    told = said(capsys)
    (training,) = [line for line in told.splitlines() if line.startswith("training    ")]
    assert all(part in training for part in ("step 3 of 400", "loss 0.5", "64 images/s", "6 min 37 s"))
    assert max(map(len, told.splitlines())) <= 100

    assert main(["logs", "run-3", "--lines", "2", "--workdir", str(tmp_path / "work")]) == 0
    assert said(capsys).splitlines() == [
        "step 2, loss 0.5, samples per second 64", "step 3, loss 0.5, samples per second 64"
    ]  # fmt: skip
    assert main(["logs", "run-3", "--step", "index", "--workdir", str(tmp_path / "work")]) == 0
    told = said(capsys)
    assert "index: failed \\x1b[31mred" in told
    assert "the pods' own logs cannot be read" in told

    assert main(["stop", "run-3"]) == 0
    states = {run["display_name"]: run["state"] for run in release.api.tables["runs"].values()}
    assert states == {f"run-{n}": "CANCELING" if n == 3 else "PENDING" for n in range(5)}
    assert main(["stop", "run-"]) == 78
    assert "several runs" in said(capsys)
    assert main(["stop", "nothing"]) == 78


def test_the_steps_of_a_run_are_shown_without_kubeflows_machinery() -> None:
    when = datetime(2026, 11, 1, tzinfo=UTC)

    def task(name: str, state: str, minutes: int) -> Task:
        return Task(name, state, when.replace(minute=minutes), when.replace(minute=minutes + 1), (), "")

    tasks = [task("root", "RUNNING", 0), task("root-driver", "SUCCEEDED", 0), task("executor", "SUCCEEDED", 0)]
    tasks += [task("caption", "SUCCEEDED", 2), task("caption", "FAILED", 3), task("configure", "SUCCEEDED", 1)]
    run = Run("id", "name\x1b[2J", "RUNNING", when, None, {}, "", tuple(tasks), "")
    assert list(run_rows(run, when.replace(minute=9))) == [
        "run         name\\x1b[2J",
        "id          id",
        "state       running, 9 min",
        "  configure      succeeded              1 min",
        "  caption        1 succeeded, 1 failed  2 min",
    ]


def test_a_training_that_has_not_begun_says_so(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write_json("config.json", {})
    assert list(training_rows(run)) == ["training    not begun"]
    assert not run.exists(LEDGER)


def test_schedules_are_listed_set_once_and_removed(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    release.deploy(NIGHTLY)
    names = ["--namespace", "kubeflow"]
    mine = ["schedule", "set", "mine", "--cron", "0 5 * * 1", "--recipe", "demo", "--workdir", "s3://b/w", *names]
    assert main(mine) == 0
    release.api.seen.clear()
    assert main(mine) == 0
    assert [change for change in changes(release.api) if "recurring" in change] == []
    said(capsys)
    assert main(["schedule", "ls", *names]) == 0
    listed = [text.split() for text in said(capsys).splitlines()[1:]]
    assert listed == [
        ["mine", "0", "5", "*", "*", "1", "enabled", "command-line"],
        ["nightly", "0", "3", "*", "*", "*", "enabled", "darkroom-pipeline"],
    ]
    assert main(["schedule", "set", "nightly", *mine[3:]]) == 78
    assert "darkroom-pipeline" in said(capsys)
    assert main(["schedule", "rm", "mine", *names]) == 0
    assert main(["schedule", "rm", "mine", *names]) == 78
    assert [one["display_name"] for one in recurring(release.api)] == ["nightly"]


def test_the_api_is_waited_for_with_a_deadline(api: KubeflowApi) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def start_slowly(method: str, path: str) -> None:
        if clock[0] < 20:
            raise Refusal(503, "no healthy upstream")

    api.before = start_slowly
    access = Access(endpoint=api.url, timeout=60)
    assert client.connect(access, {}, sleep, lambda: clock[0]).pipeline("darkroom") is None
    assert 20 <= clock[0] < 40
    clock[0] = 0.0
    with pytest.raises(KubeflowAway, match="503 no healthy upstream"):
        client.connect(access._replace(timeout=10), {}, sleep, lambda: clock[0])
    assert clock[0] <= 10


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "log in: --token-file"), (403, "(--namespace)"), (400, "refuses")]
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(api: KubeflowApi, status: int, advice: str) -> None:
    def refuse(method: str, path: str) -> None:
        raise Refusal(status, "so it is")

    def never(seconds: float) -> None:
        raise AssertionError("it waited")

    api.before = refuse
    with pytest.raises(ConfigError) as caught:
        client.connect(Access(endpoint=api.url, timeout=60), {}, never)
    assert f"{status} so it is" in str(caught.value)
    assert advice in str(caught.value)
    assert len(api.seen) == 1


def test_a_token_is_read_anew_from_its_file_or_taken_from_the_environment(api: KubeflowApi, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    api.token = "first"
    connected = client.connect(Access(endpoint=api.url, token_file=str(file), timeout=0), {})
    file.write_text("second\n")
    api.token = "second"
    assert connected.runs(3) == []
    assert client.connect(Access(endpoint=api.url, timeout=0), {TOKEN: "second"}).recurring() == []
    with pytest.raises(ConfigError, match="log in"):
        client.connect(Access(endpoint=api.url, timeout=0), {TOKEN: "first"})


def test_where_there_is_no_kubeflow_it_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 78
    assert "give --endpoint or KF_PIPELINES_ENDPOINT" in said(capsys)
    assert main(["status", "--endpoint", "http://127.0.0.1:9", "--timeout", "0"]) == 74
    assert "Connection refused" in said(capsys)
