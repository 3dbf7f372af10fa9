"""Kueue writes a TrainJob anew when it admits it: nothing that is rendered may be gone, or look different, then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from components.train.config import TrainConfig
from pipeline.config import RunConfig, resolve
from pipeline.launch.context import TrainerArguments
from pipeline.launch.render import Owner, render
from pipeline.placement import PRESETS, Cloud, PlacementConfig, resources
from pipeline.recipe import recipes
from tests.cluster.kueue import canonical_quantity, round_trip

POOLS: tuple[Any, ...] = ("spot", "on-demand")


def job_of(config: RunConfig, pool: Any, environment: dict[str, str] | None = None) -> dict[str, Any]:
    data = ("workdir:models/base", "key", "digest", config.seed, config.train)
    arguments = TrainerArguments(config.run, "s3://bucket/work", *data)
    return render(arguments, config.placement, pool, config.placement.nodes, 1, Owner("flow", "uid"), environment)


def empty(value: Any, path: str = "") -> list[str]:
    """Return what is empty anywhere in an object."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        below = [one for key, item in items for one in empty(item, f"{path}.{key}")]
        return below if value else [path]
    return [path] if value in (None, "", 0, False) else []


@pytest.mark.parametrize("cloud", PRESETS)
@pytest.mark.parametrize("recipe", recipes())
def test_nothing_is_lost_of_any_recipe_in_any_pool_of_any_cloud(recipe: str, cloud: Cloud) -> None:
    for pool in POOLS:
        for queue in ("placement.queue=darkroom", "placement.gpus=0"):
            job = job_of(resolve(recipe, [f"placement.cloud={cloud}", queue], "s3://bucket/images"), pool)
            assert round_trip(job["spec"]) == job["spec"]
            assert empty(job) == []


@pytest.mark.parametrize(
    "placement",
    [
        {"cpus": 8, "memory_gib": 80, "gpus": 8},
        {"cpus": 11.5, "memory_gib": 0.7},
        {"cpus": 1000, "memory_gib": 2048},
        {"env": {"NCCL_DEBUG": "", "A": "b"}, "secret_env": {"HF_TOKEN": "hub/token"}},
        {"grace_seconds": 10, "pod_grace_seconds": 900, "node_selector": {"team": ""}, "image": "registry/x@sha256:0"},
    ],
)
def test_nothing_is_lost_of_a_placement(placement: dict[str, Any]) -> None:
    values = {"name": "x", "ingest": {"source": "x"}, "placement": {"cloud": "gke", "queue": "q", **placement}}
    for pool in POOLS:
        spec = job_of(RunConfig.parse(values), pool, {"AWS_REGION": "eu-west-1"})["spec"]
        assert round_trip(spec) == spec


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("trainer", "env"), []),
        (("trainer", "resourcesPerNode"), {"requests": {"cpu": "8000m"}}),
        (("runtimePatches", 0, "trainingRuntimeSpec", "template", "spec", "replicatedJobs", 0, "template", "spec",
          "template", "spec", "terminationGracePeriodSeconds"), 15),
    ],
)  # fmt: skip
def test_the_round_trip_finds_what_once_kept_trainings_from_starting(part: tuple[Any, ...], value: Any) -> None:
    arguments = TrainerArguments("demo-0", "s3://bucket/work", "base", "key", "digest", 7, TrainConfig())
    spec = render(arguments, PlacementConfig.parse({"cloud": "gke"}), "spot", 1, 0)["spec"]
    changed = copy.deepcopy(spec)
    *path, last = part
    target = changed
    for key in path:
        target = target[key]
    target[last] = value
    assert round_trip(changed) != changed


@pytest.mark.parametrize(
    ("text", "written"),
    [("8000m", "8"), ("11500m", "11500m"), ("1000", "1k"), ("81920Mi", "80Gi"), ("717Mi", "717Mi"), ("0", "0")],
)
def test_quantities_are_written_as_go_does(text: str, written: str) -> None:
    assert canonical_quantity(text) == written


@pytest.mark.parametrize("cpus", [0.5, 1, 8, 11.5, 96, 1000, 1024])
@pytest.mark.parametrize("memory", [0.5, 1, 80, 1024, 1536, 2048])
def test_quantities_are_rendered_as_go_writes_them(cpus: float, memory: float) -> None:
    placement = PlacementConfig.parse({"cpus": cpus, "memory_gib": memory})
    for texts in resources(placement).values():
        assert texts == {name: canonical_quantity(text) for name, text in texts.items()}


def test_the_types_are_those_of_the_release_that_kueue_uses() -> None:
    text = Path(__file__).parents[2].joinpath("cluster/trainjob_fields.json").read_text("utf-8")
    assert text.startswith('{"kubeflow-trainer-api": "2.2.1"')
    assert "terminationGracePeriodSeconds" not in text
