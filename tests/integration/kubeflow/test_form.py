"""The dashboard's form started without a word typed: the recipe, source and overrides that a release shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.image.records import read_manifest
from components.storage.open import open_storage
from pipeline import work
from pipeline.kubeflow.compile import compile_to
from pipeline.kubeflow.release import Deployment, read_deployment

pytestmark = pytest.mark.usefixtures("quick_compiler")

ROOT = Path(__file__).parents[3]
# Runs the pipeline of a release on this machine, with nothing but a workdir instead of the bucket.
PROGRAM = """
import json, sys
from pathlib import Path
from kfp import local
from pipeline.dag import build
from pipeline.kubeflow.release import read_deployment
from pipeline.local.dag_process import _name_this_python
from pipeline.pod import StepPod
folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
deployment = read_deployment(folder / "deploy.yaml")
_name_this_python(folder)
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"))
build(lambda step: StepPod("python"), deployment.cluster)(**given)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder but for the release's file: that of tests/, without the price list that is mounted in pods."""
    values = read_deployment(ROOT / "tests/deploy.yaml").model_dump(mode="json")
    values["config_maps"] = {}
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.fixture
def release(folder: Path) -> Deployment:
    return read_deployment(folder / "deploy.yaml")


def first_step(folder: Path, release: Deployment) -> dict[str, Any]:
    """Return what the compiled pipeline gives its first step if nobody types anything, but for the workdir."""
    compile_to(folder / "darkroom.yaml", release)
    pipeline, _ = yaml.safe_load_all((folder / "darkroom.yaml").read_text())
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    inputs = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]["configure"]["inputs"]["parameters"]
    given: dict[str, Any] = {}
    for name, value in inputs.items():
        if "runtimeValue" in value:
            given[name] = json.loads(json.dumps(value["runtimeValue"]["constant"]))
        else:
            given[name] = form[value["componentInputParameter"].removeprefix("pipelinechannel--")]["defaultValue"]
    return {**given, "workdir": str(folder / "work")}


def test_the_first_steps_take_what_the_form_shows(
    folder: Path, release: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    given = first_step(folder, release)
    assert all(given.values()), "a release of Kubeflow may take what is empty for what is missing"
    config = work.configure(**given)
    assert work.run_step("ingest", config)["images"] == 1797
    run = work.open_run(config)
    assert run.settings.placement.queue == release.queue == "darkroom"
    assert run.settings.placement.cloud == "gke"
    assert read_manifest(run.workdir, run.source_id).source == "example:digits"
    assert list((folder / "empty").iterdir()) == []


@pytest.mark.proof
def test_the_forms_defaults_run_to_a_published_model(folder: Path, release: Deployment) -> None:
    given = first_step(folder, release)
    form = json.dumps({name: given[name] for name in ("recipe", "workdir", "source", "overrides")})
    command = [sys.executable, "-c", PROGRAM, str(folder), form]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
    workdir = open_storage(given["workdir"])
    champion = workdir.read_json("models/demo/champion.json")
    assert workdir.exists(f"models/demo/{champion['version']}/model_index.json")
    (report,) = [entry.key for entry in workdir.list("runs") if entry.key.endswith("/report.json")]
    assert workdir.read_json(report)["status"] == "succeeded"
