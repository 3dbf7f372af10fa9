"""What is sent to a cluster: the compiled pipeline, whole and in the properties that runs depend on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import ConfigError, StorageError
from pipeline.runs import compile_to

GOLDEN = Path(__file__).parents[1] / "golden/demo.yaml"
IMAGE = "registry.example/darkroom@sha256:" + 64 * "a"
STEPS = {
    "configure", "ingest", "autoencoder", "caption", "clean", "latents", "index", "train", "evaluate", "publish",
    "report",
}  # fmt: skip
DAY = 24 * 3600


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("compiled") / "darkroom.yaml"
    compile_to("demo", file, IMAGE, retries=7, workdir="s3://somewhere/else")
    pipeline: dict[str, Any] = yaml.safe_load(file.read_text())
    return pipeline


def tasks(pipeline: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every task of every graph, however deep, by its name."""
    graphs = [pipeline["root"], *pipeline["components"].values()]
    for graph in graphs:
        yield from graph.get("dag", {}).get("tasks", {}).items()


def steps(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks that run in containers."""
    return {name: task for name, task in tasks(pipeline) if name in STEPS}


def test_the_compiled_pipeline_is_the_one_that_was_reviewed(tmp_path: Path) -> None:
    file = tmp_path / "demo.yaml"
    compile_to("demo", file, "darkroom:latest", retries=5, workdir="s3://bucket/darkroom")
    assert file.read_text() == GOLDEN.read_text(), (
        "the compiled pipeline has changed; if that is meant, `make golden` writes tests/golden/demo.yaml anew"
    )


def test_every_step_runs_in_the_given_image_and_installs_nothing(compiled: dict[str, Any]) -> None:
    containers = {name: spec["container"] for name, spec in compiled["deploymentSpec"]["executors"].items()}
    assert set(containers) == {f"exec-{step}" for step in STEPS}
    assert {container["image"] for container in containers.values()} == {IMAGE}
    assert "pip" not in " ".join(" ".join(container["command"]) for container in containers.values()).split()


def test_nothing_is_taken_from_kubeflows_cache(compiled: dict[str, Any]) -> None:
    options = {name: task.get("cachingOptions", {}) for name, task in tasks(compiled)}
    assert set(options) > STEPS
    assert not any(option.get("enableCache") for option in options.values())


def test_every_step_is_retried_for_days_not_for_an_hour(compiled: dict[str, Any]) -> None:
    policies = {name: task["retryPolicy"] for name, task in steps(compiled).items()}
    assert set(policies) == STEPS
    assert {policy["maxRetryCount"] for policy in policies.values()} == {7}
    assert min(int(policy["backoffMaxDuration"].removesuffix("s")) for policy in policies.values()) >= 7 * DAY


def test_no_retries_are_no_policy(tmp_path: Path) -> None:
    file = tmp_path / "darkroom.yaml"
    compile_to("demo", file, IMAGE, retries=0, workdir="s3://somewhere/else")
    assert "retryPolicy" not in file.read_text()


def test_the_report_is_written_however_the_rest_ends(compiled: dict[str, Any]) -> None:
    root = compiled["root"]["dag"]["tasks"]
    body = next(name for name in root if name != "report")
    assert set(root) == {body, "report"}
    assert root["report"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert root["report"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": body}}
    inside = compiled["components"][root[body]["componentRef"]["name"]]["dag"]["tasks"]
    assert STEPS - set(inside) == {"caption", "clean", "latents", "index", "publish", "report"}


def test_a_model_is_published_only_where_it_is_better(compiled: dict[str, Any]) -> None:
    conditions = {
        task["triggerPolicy"]["condition"]
        for _, task in tasks(compiled)
        if "condition" in task.get("triggerPolicy", {})
    }
    assert conditions == {"inputs.parameter_values['pipelinechannel--evaluate-Output'] == true"}


def test_the_dashboards_form_is_typed_described_and_filled_in(compiled: dict[str, Any]) -> None:
    form = compiled["root"]["inputDefinitions"]["parameters"]
    assert {name: field["parameterType"] for name, field in form.items()} == {
        "recipe": "STRING", "workdir": "STRING", "source": "STRING", "overrides": "LIST"
    }  # fmt: skip
    assert {name: field["defaultValue"] for name, field in form.items()} == {
        "recipe": "demo", "workdir": "s3://somewhere/else", "source": "", "overrides": []
    }  # fmt: skip
    assert all(len(field["description"]) > 20 for field in form.values())


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        compile_to("dmeo", tmp_path / "x.yaml", IMAGE, 0, "w")
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        compile_to("demo", tmp_path / "x.json", IMAGE, 0, "w")
    with pytest.raises(StorageError, match="cannot write"):
        compile_to("demo", tmp_path / "missing" / "x.yaml", IMAGE, 0, "w")
