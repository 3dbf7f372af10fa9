"""A training as a TrainJob: nothing is dropped on the way, and the API's own schema takes it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from components.settings import override
from components.train.config import TrainConfig
from components.train.request import parser
from pipeline.launch.context import TrainerArguments
from pipeline.launch.render import (
    DATASET,
    JOB_LABEL,
    NODES,
    NUMBER,
    POOL,
    SPEC,
    WORKDIR,
    Owner,
    job_label,
    render,
)
from pipeline.placement import PlacementConfig
from tests import yaml_text

CRDS = Path(__file__).parents[3].parent / "shared/crds"
PLACEMENTS: dict[str, dict[str, Any]] = {
    "kind": {"cloud": "kind", "gpus": 0},
    "gke": {"cloud": "gke", "nodes": 3, "gpus": 8, "queue": "gpus", "priority": "low", "instance": "a2-highgpu-8g"},
    "eks": {"cloud": "eks", "cpus": 11.5, "memory_gib": 80, "secret_env": {"WANDB_API_KEY": "wandb/key"}},
    "aks": {"cloud": "aks", "image": "registry/darkroom-gpu@sha256:" + "0" * 64, "env": {"NCCL_DEBUG": "INFO"}},
    "none": {"spot": False, "namespace": "lab", "node_selector": {"team": "vision"}},
}


def arguments(name: str = "demo-0a1b2c3d", workdir: str = "s3://bucket/work", **config: Any) -> TrainerArguments:
    return TrainerArguments(name, workdir, "workdir:models/base/x", "key", "digest", 7, TrainConfig.parse(config))


def crd(name: str) -> dict[str, Any]:
    file = CRDS / name
    if not file.exists():
        pytest.skip(f"the schemas of the cluster's objects are missing ({CRDS})")
    (version,) = yaml_text.load(file.read_text())["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def unknown(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Return the keys of a value that its schema does not declare: an API server would drop them silently."""
    keys = []
    if isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        declared, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        for key, below in value.items():
            if key in declared:
                keys += unknown(below, declared[key], f"{path}.{key}")
            elif isinstance(additional, dict):
                keys += unknown(below, additional, f"{path}.{key}")
            elif path != ".metadata":
                keys.append(f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            keys += unknown(item, schema["items"], f"{path}[]")
    return keys


@pytest.mark.parametrize("pool", ["spot", "on-demand"])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_nothing_is_dropped_and_the_schema_takes_it(name: str, pool: Any) -> None:
    import jsonschema

    placement = PlacementConfig.parse(PLACEMENTS[name])
    environment = {"AWS_REGION": "eu-west-1", "AWS_SECRET_ACCESS_KEY": "never"}
    job = render(arguments(), placement, pool, placement.nodes, 3, Owner("flow", "uid-1"), environment)
    model = TrainerV1alpha1TrainJob.from_dict(job)
    assert model is not None
    assert model.to_dict() == job
    assert "never" not in yaml.safe_dump(job), "secrets are only referred to"
    schema = crd("trainer/trainer.kubeflow.org_trainjobs.yaml")
    jsonschema.Draft202012Validator(schema).validate(job)
    assert unknown(job, schema) == []


def test_the_trainer_of_a_node() -> None:
    placement = PlacementConfig.parse(PLACEMENTS["gke"])
    job = render(arguments(steps=5, limits={"stop_grace_seconds": 60.0}), placement, "spot", 3, 0)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    spec, trainer = job["spec"], job["spec"]["trainer"]
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "darkroom-train",
    }
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 8)
    assert trainer["command"] == ["python", "-m", "components.train"]
    assert "--set=limits.stop_grace_seconds=9.0" in trainer["args"], "15 s less 5 s for ranks that crash, less 1 s"
    (patch,) = spec["runtimePatches"]
    (part,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = part["template"]["spec"]["template"]
    assert part["name"] == "node"
    assert pod["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "kueue.x-k8s.io/queue-name" not in pod["metadata"]["labels"], "or Kueue counts the pods again"


@given(
    prompts=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3),
    rate=st.floats(1e-9, 1),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
@settings(deadline=None, max_examples=60)
def test_the_trainer_reads_the_same_settings(prompts: list[str], rate: float, betas: tuple[float, float]) -> None:
    values: dict[str, Any] = {
        "samples": {"prompts": prompts, "steps": [2]},
        "optimizer": {"learning_rate": rate, "betas": betas},
        "data": {"cache": "$(HOME)$$"},
    }
    job = render(arguments(**values), PlacementConfig.parse({"spot": False}), "on-demand", 1, 0)
    # The kubelet replaces $$ by $.
    command_line = [text.replace("$$", "$") for text in job["spec"]["trainer"]["args"]]
    read: argparse.Namespace = parser(None).parse_args(command_line)
    assert TrainConfig.parse(override({}, [text for texts in read.set for text in texts])) == TrainConfig.parse(values)
    assert (read.run, read.workdir, read.seed) == ("demo-0a1b2c3d", "s3://bucket/work", 7)


@pytest.mark.parametrize(
    "name", ["demo-0a1b2c3d", "9-lives-0a1b2c3d", "a" * 40 + "-0a1b2c3d", "x-" * 19 + "x-0a1b2c3d"]
)
def test_names_fit_into_those_of_pods(name: str) -> None:
    job = render(arguments(name), PlacementConfig(), "spot", 1024, 9999)
    job_name = job["metadata"]["name"]
    assert len(f"{job_name}-node-0-1023-abcde") <= 63
    assert job_name[0].isalpha()
    assert job_name.startswith(job_label(name, "s3://bucket/work"))
    assert all(character.isalnum() or character == "-" for character in job_name)


def test_a_label_stands_for_a_run_in_a_workdir() -> None:
    labels = {job_label("demo-0", "s3://bucket"), job_label("demo-0", "s3://other"), job_label("demo-1", "s3://bucket")}
    assert len(labels) == 3
    jobs = [render(arguments(steps=steps), PlacementConfig(), "spot", 1, 0) for steps in (8, 9)]
    label = job_label("demo-0a1b2c3d", "s3://bucket/work")
    assert [job["metadata"]["labels"][JOB_LABEL] for job in jobs] == [label, label]


def test_what_identifies_a_job_is_on_it() -> None:
    def metadata(number: int = 3, **config: Any) -> dict[str, Any]:
        placement = PlacementConfig.parse({"cloud": "gke", "namespace": "lab", "nodes": 4, "spot": False})
        job = render(arguments(**config), placement, "on-demand", 2, number, Owner("flow", "uid-1"))
        result: dict[str, Any] = job["metadata"]
        return result

    job = metadata()
    assert job["name"] == f"{job_label('demo-0a1b2c3d', 's3://bucket/work')}-3"
    assert job["namespace"] == "lab"
    assert [(owner["kind"], owner["name"], owner["uid"]) for owner in job["ownerReferences"]] == [
        ("Workflow", "flow", "uid-1")
    ]
    annotations = job["annotations"]
    assert (annotations[WORKDIR], annotations[DATASET]) == ("s3://bucket/work", "digest")
    assert (annotations[POOL], annotations[NODES], annotations[NUMBER]) == ("on-demand", "2", "3")
    assert metadata(number=4)["annotations"][SPEC] == annotations[SPEC]
    assert metadata(steps=9)["annotations"][SPEC] != annotations[SPEC]


def test_an_on_demand_pod_is_kept_off_spot_nodes_by_affinity_if_no_label_marks_on_demand_ones() -> None:
    job = render(arguments(), PlacementConfig.parse({"cloud": "gke"}), "on-demand", 1, 0)
    (patch,) = job["spec"]["runtimePatches"]
    (part,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert "cloud.google.com/gke-spot" in str(part["template"]["spec"]["template"]["spec"]["affinity"])


def test_variables_that_say_where_the_storage_is_are_passed_on_unless_the_placement_sets_them() -> None:
    environment = {"AWS_REGION": "here", "AWS_ENDPOINT_URL": "http://store", "AWS_DEFAULT_REGION": "", "HOME": "/root"}
    placement = PlacementConfig.parse({"env": {"AWS_REGION": "there"}})
    variables = render(arguments(), placement, "on-demand", 1, 0, environment=environment)["spec"]["trainer"]["env"]
    assert {variable["name"]: variable["value"] for variable in variables} == {
        "AWS_REGION": "there", "AWS_ENDPOINT_URL": "http://store",
    }  # fmt: skip
    assert len(variables) == 2
