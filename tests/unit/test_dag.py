"""What is sent to a cluster: the compiled pipeline, whole and in the properties that runs depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline.recipe
from components.command import load_steps
from components.errors import ConfigError, StorageError
from pipeline.config import resolve, resolve_parameters
from pipeline.dag import PURPOSE
from pipeline.kubeflow.compile import MOST_DESCRIPTION, compile_to, describe
from pipeline.kubeflow.release import Deployment, read_deployment
from pipeline.kubeflow.step_pods import step_names
from pipeline.recipe import recipes
from tests import yaml_text
from tests.golden.__main__ import pods_table
from tests.golden.dashboard import blocks, form, graph, read

pytestmark = pytest.mark.usefixtures("quick_compiler")

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASE = read_deployment(Path(__file__).parents[1] / "deploy.yaml")
LIGHT, HEAVY = RELEASE.image, RELEASE.gpu_image
DECLARED = load_steps()
STEPS = set(step_names())
RUN_MODELS = {name for name, step in DECLARED.items() if step.loads_models and not step.is_launched}
DAY = 24 * 3600


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compile_of(tmp_path_factory.mktemp("compiled"), "demo", [])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compile_of(tmp_path_factory.mktemp("full"), "sd15-full", ["launch.deadline_hours=100"])


def compile_of(folder: Path, recipe: str, overrides: list[str], release: Deployment = RELEASE) -> dict[str, Any]:
    """Return the two documents of the IR as one."""
    compile_to(folder / "darkroom.yaml", release, recipe, overrides)
    pipeline, platform = yaml_text.load_all((folder / "darkroom.yaml").read_text())
    merged: dict[str, Any] = {**pipeline, **platform}
    return merged


def containers(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = pipeline["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): spec["container"] for name, spec in executors.items()}


def pods(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = pipeline["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): spec for name, spec in executors.items()}


def tasks(pipeline: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every task of every graph, however deep, by its name."""
    for component in [pipeline["root"], *pipeline["components"].values()]:
        yield from component.get("dag", {}).get("tasks", {}).items()


def steps_below(pipeline: dict[str, Any], task: dict[str, Any]) -> Iterator[str]:
    """Yield the names of the steps of a task's own graph, however deep."""
    graph = pipeline["components"][task["componentRef"]["name"]].get("dag", {}).get("tasks", {})
    for name, inner in graph.items():
        if name in STEPS:
            yield name
        yield from steps_below(pipeline, inner)


def steps(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks that run in containers."""
    return {name: task for name, task in tasks(pipeline) if name in STEPS}


def test_the_compiled_pipeline_is_the_one_that_was_reviewed(tmp_path: Path) -> None:
    compile_to(tmp_path / "compiled.yaml", RELEASE, "demo")
    assert (tmp_path / "compiled.yaml").read_text() == (GOLDEN / "demo.yaml").read_text(), (
        "the compiled pipeline has changed; if that is meant, `make golden` writes tests/golden/demo.yaml anew"
    )


def test_the_dashboard_shows_what_was_reviewed(tmp_path: Path) -> None:
    compile_to(tmp_path / "compiled.yaml", RELEASE, "demo")
    pipeline, platform = read(tmp_path / "compiled.yaml")
    again = "if that is meant, `make golden` writes tests/golden anew"
    assert form(pipeline) == (GOLDEN / "form.txt").read_text(), f"the form or its help has changed; {again}"
    assert graph(pipeline, platform) == (GOLDEN / "graph.txt").read_text(), f"the graph has changed; {again}"
    assert set(step_names()) <= {name for _, name, _ in blocks(pipeline, pipeline["root"]["dag"]["tasks"])}


@pytest.mark.parametrize("recipe", recipes())
def test_the_pods_of_every_recipe_are_those_that_were_reviewed(recipe: str) -> None:
    assert pods_table(recipe, RELEASE) == (GOLDEN / "pods" / f"{recipe}.txt").read_text(), (
        f"pods have changed; if that is meant, `make golden` writes tests/golden/pods/{recipe}.txt anew"
    )


def test_there_is_no_table_of_a_recipe_that_is_gone() -> None:
    assert {file.stem for file in (GOLDEN / "pods").iterdir()} == set(recipes())


def test_every_step_runs_in_a_pinned_image_and_installs_nothing(full: dict[str, Any]) -> None:
    assert set(containers(full)) == STEPS
    images = {step: container["image"] for step, container in containers(full).items()}
    assert images == {step: HEAVY if step in RUN_MODELS else LIGHT for step in STEPS}
    assert "pip" not in " ".join(" ".join(container["command"]) for container in containers(full).values()).split()


def test_one_image_serves_where_there_is_no_other(tmp_path: Path) -> None:
    alone = Deployment(image="one@sha256:" + 64 * "c")
    images = {container["image"] for container in containers(compile_of(tmp_path, "sd15-full", [], alone)).values()}
    assert images == {alone.image}


def test_steps_that_run_models_ask_for_a_gpu_and_the_launcher_for_little(full: dict[str, Any]) -> None:
    asked = {step: container["resources"] for step, container in containers(full).items()}
    with_gpu = {step for step, resources in asked.items() if "accelerator" in resources}
    settings = resolve("sd15-full")
    assert with_gpu == {step for step in RUN_MODELS if DECLARED[step].uses_gpu(settings)}
    assert with_gpu >= {"caption", "latents", "evaluate"}
    assert not with_gpu & {"autoencoder", "publish"}  # the base model is there: nothing to train
    assert {asked[step]["accelerator"]["resourceType"] for step in with_gpu} == {"nvidia.com/gpu"}
    assert {asked[step]["accelerator"]["resourceCount"] for step in with_gpu} == {"1"}
    assert asked["train"]["resourceCpuRequest"] == "1000m"
    assert asked["train"]["resourceMemoryLimit"] == asked["train"]["resourceMemoryRequest"] == "4096Mi"
    assert asked["latents"]["resourceMemoryLimit"] == "28672Mi"
    assert not any("resourceCpuLimit" in resources for resources in asked.values())


def test_training_in_the_step_itself_asks_for_the_machine_of_the_training(tmp_path: Path) -> None:
    pipeline = compile_of(tmp_path, "sd15-full", ["launch.where=local"])
    resources = containers(pipeline)["train"]["resources"]
    assert (resources["accelerator"]["resourceCount"], resources["resourceCpuRequest"]) == ("8", "88000m")
    assert containers(pipeline)["train"]["image"] == HEAVY
    assert pods(pipeline)["train"]["nodeSelector"]["labels"]["node.kubernetes.io/instance-type"] == "p4d.24xlarge"
    assert "WANDB_API_KEY" in str(pods(pipeline)["train"]["secretAsEnv"])


def test_gpu_steps_put_up_with_gpu_taints_and_stay_off_spot_machines(full: dict[str, Any]) -> None:
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    with_gpu = {step for step, container in containers(full).items() if "accelerator" in container["resources"]}
    for step in with_gpu:
        assert pods(full)[step]["tolerations"] == [gpu]
        assert "cloud.google.com/gke-spot" in str(pods(full)[step]["nodeAffinity"])
    assert {step for step, pod in pods(full).items() if "tolerations" in pod} == with_gpu


def test_gpu_steps_take_spot_machines_of_a_type_when_told_to(tmp_path: Path) -> None:
    chosen = compile_of(tmp_path, "sd15-full", ["pods.heavy.spot=true", "pods.heavy.instance=g2-standard-24"])
    pod = pods(chosen)["latents"]
    assert pod["nodeSelector"]["labels"] == {
        "cloud.google.com/gke-spot": "true", "node.kubernetes.io/instance-type": "g2-standard-24"
    }  # fmt: skip
    assert [one["key"] for one in pod["tolerations"]] == ["cloud.google.com/gke-spot", "nvidia.com/gpu"]
    assert "nodeAffinity" not in pod


def test_every_step_has_a_time_limit_and_training_the_launchers(full: dict[str, Any], compiled: dict[str, Any]) -> None:
    limits = {step: int(pod.get("activeDeadlineSeconds", 0)) for step, pod in pods(full).items()}
    assert {limits[step] for step in RUN_MODELS} == {3 * DAY}
    assert limits["train"] == 124 * 3600
    assert limits["configure"] == limits["report"] == DAY
    assert "activeDeadlineSeconds" not in pods(compiled)["train"]


def test_every_pod_is_nobody_and_known_to_the_network_policies(full: dict[str, Any]) -> None:
    for pod in pods(full).values():
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert pod["podMetadata"]["labels"] == {
            "app.kubernetes.io/part-of": "darkroom", "app.kubernetes.io/component": "pipeline"
        }  # fmt: skip
        assert pod["emptyDirMounts"][0]["mountPath"] == "/tmp"
        assert pod["imagePullPolicy"] == "IfNotPresent"
        assert [one["secretName"] for one in pod["imagePullSecret"]] == ["registry"]


def test_secrets_are_named_and_each_step_gets_only_its_own(full: dict[str, Any]) -> None:
    for step, pod in pods(full).items():
        given = {one["secretName"]: {key["envVar"] for key in one["keyToEnv"]} for one in pod["secretAsEnv"]}
        store = {"store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}}
        assert given == (store | {"hub": {"HF_TOKEN"}} if step in RUN_MODELS else store)
        assert containers(full)[step]["env"] == [{"name": "AWS_REGION", "value": "eu-central-1"}]
    mounts = {one["configMapName"]: one["mountPath"] for one in pods(full)["configure"]["configMapAsVolume"]}
    assert mounts == {"darkroom-recipes": "/etc/darkroom-recipes", "darkroom-prices": "/etc/darkroom-prices"}


def test_the_same_run_on_the_same_release_is_the_same_version(tmp_path: Path) -> None:
    names = [
        compile_to(tmp_path / f"{n}.yaml", RELEASE, "sd15-full", text) for n, text in enumerate(([], [], ["seed=3"]))
    ]
    assert len(set(names)) == 1, "what the pods do not depend on makes no new version"
    assert compile_to(tmp_path / "x.yaml", RELEASE, "sd15-full", ["pods.heavy.gpus=2"]) != names[0]
    assert names[0].startswith("ir-")


def test_nothing_is_taken_from_kubeflows_cache(compiled: dict[str, Any]) -> None:
    options = {name: task.get("cachingOptions", {}) for name, task in tasks(compiled)}
    assert set(options) > STEPS
    assert not any(option.get("enableCache") for option in options.values())


def test_every_step_is_retried_for_days_not_for_an_hour(compiled: dict[str, Any]) -> None:
    policies = {name: task["retryPolicy"] for name, task in steps(compiled).items()}
    assert set(policies) == STEPS
    assert {policy["maxRetryCount"] for policy in policies.values()} == {5}
    assert min(int(policy["backoffMaxDuration"].removesuffix("s")) for policy in policies.values()) >= 365 * DAY


def test_no_retries_are_no_policy(tmp_path: Path) -> None:
    compile_to(tmp_path / "darkroom.yaml", Deployment(retries=0))
    assert "retryPolicy" not in (tmp_path / "darkroom.yaml").read_text()


def test_the_report_is_written_however_the_rest_ends(compiled: dict[str, Any]) -> None:
    root = compiled["root"]["dag"]["tasks"]
    body = next(name for name in root if name != "report")
    assert set(root) == {body, "report"}
    assert root["report"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert root["report"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": body}}
    assert set(steps_below(compiled, root[body])) == STEPS - {"report"}


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
        "recipe": "demo", "workdir": "s3://bucket/darkroom", "source": "recipe", "overrides": ["none"]
    }  # fmt: skip
    assert all(len(field["description"]) > 20 for field in form.values())


def test_the_description_is_the_help_that_the_form_lacks(compiled: dict[str, Any]) -> None:
    text = compiled["pipelineInfo"]["description"]
    assert text == describe(RELEASE, "demo", PURPOSE)
    assert all(f"- {name}:" in text for name in [*recipes(), "source", "overrides", "workdir"])
    assert "`darkroom-pipeline`" in text
    assert "`0 0 3 * * *`" in text
    assert resolve_parameters("demo", "recipe", json.loads(text.split("such as `")[1].split("`")[0])).train.steps == 800


def test_a_description_is_bounded_however_many_recipes_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.recipe, "RELEASE_RECIPES", tmp_path)
    for number in range(60):
        (tmp_path / f"r{number:02d}.yaml").write_text(f"base: demo\nname: r\ndescription: {'long ' * 30}\n")
    (tmp_path / "alone.yaml").write_text("base: house\n")
    text = describe(RELEASE, "demo", PURPOSE)
    assert MOST_DESCRIPTION - 300 < len(text) <= MOST_DESCRIPTION
    assert "\n- alone: on top of house\n" in text
    assert text.endswith("more: the ConfigMap darkroom-recipes has them all")


def test_the_clusters_settings_are_compiled_in_and_nobody_types_them(compiled: dict[str, Any]) -> None:
    for step in ("configure", "report"):
        given = next(task for name, task in tasks(compiled) if name == step)["inputs"]["parameters"]["cluster"]
        assert given == {"runtimeValue": {"constant": RELEASE.cluster}}


def test_the_dashboard_gets_pages_and_numbers(compiled: dict[str, Any]) -> None:
    kinds = {
        step: {
            name: artifact["artifactType"]["schemaTitle"]
            for name, artifact in compiled["components"][f"comp-{step}"]["outputDefinitions"]["artifacts"].items()
        }
        for step in ("evaluate", "report")
    }
    assert kinds["evaluate"] == {"metrics": "system.Metrics"}
    assert kinds["report"] == {"page": "system.HTML", "summary": "system.Markdown", "metrics": "system.Metrics"}


def test_the_clusters_own_settings_win_over_the_recipes() -> None:
    assert RELEASE.cluster == [
        "placement.runtime=darkroom-train", "placement.cloud=gke", "placement.queue=darkroom",
        "placement.prices=/etc/darkroom-prices/prices.yaml",
    ]  # fmt: skip
    settings = resolve("sd15-full", RELEASE.cluster)
    assert (settings.placement.cloud, settings.placement.queue) == ("gke", "darkroom")
    assert settings.run == resolve("sd15-full").run


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        compile_to(tmp_path / "x.yaml", RELEASE, "dmeo")
    with pytest.raises(ConfigError, match=r"ends in \.yaml"):
        compile_to(tmp_path / "x.json", RELEASE)
    with pytest.raises(StorageError, match="cannot write"):
        compile_to(tmp_path / "missing" / "x.yaml", RELEASE)
