"""The pods of a version of the pipeline are enough for a run, or the run is rejected and told what they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError
from pipeline import work
from pipeline.config import resolve
from pipeline.launch.checks.demands import as_json, check_pods, demands
from pipeline.recipe import recipes

RECIPE = str(Path(__file__).parents[2] / "recipes/small.yaml")


def pods_of(recipe: str, *overrides: str) -> dict[str, Any]:
    """Return what a version carries, as Kubeflow gives it back: all of its numbers are floats."""
    compiled = as_json(demands(resolve(recipe, overrides)))
    restored: dict[str, Any] = json.loads(json.dumps(compiled), parse_int=float)
    return restored


def lacks(pods: dict[str, Any], recipe: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_pods(pods, resolve(recipe, overrides))
    return str(caught.value)


@pytest.mark.parametrize("recipe", recipes())
def test_the_pods_of_a_recipe_are_enough_for_it(recipe: str) -> None:
    check_pods(pods_of(recipe), resolve(recipe, ["seed=7"]))


def test_pods_with_more_than_is_needed_are_enough() -> None:
    check_pods(pods_of("sd15-full"), resolve("sd15-full", ["pods.heavy.memory_gib=20", "pods.heavy.cpus=1"]))
    check_pods(pods_of("sd15-full", "pods.heavy.shared_memory_gib=9"), resolve("sd15-full"))
    check_pods(pods_of("demo"), resolve("digits", ["launch.where=local"]))


def test_a_pipeline_that_says_nothing_of_its_pods_is_not_judged() -> None:
    check_pods({}, resolve("sd15-full"))


def test_each_lack_is_named_with_what_is_needed_and_steps_that_lack_the_same_are_one_line() -> None:
    told = lacks(pods_of("digits"), "sd15-full").splitlines()
    assert told[0] == "the pods of this version of the pipeline are too little for sd15-full:"
    assert any(line.startswith("- autoencoder, publish: 0.5 CPUs, needed 7; 2048 MiB, needed 28672") for line in told)
    assert any(line.startswith("- caption, evaluate, latents: no GPU, needed 1 nvidia.com/gpu; 0.5") for line in told)
    assert "darkroom submit --file deploy.yaml" in told[-1]


@pytest.mark.parametrize(
    ("given", "needed", "text"),
    [
        ("launch.where=local", "launch.where=trainjob", "train: no account that creates TrainJobs, needed one"),
        ("launch.where=trainjob", "launch.where=local", "train: the image without models, needed the one with them"),
        ("launch.deadline_hours=10", "launch.deadline_hours=11", "train: 34 hours, needed 35"),
        ("launch.deadline_hours=10", "launch.deadline_hours=null", "train: 34 hours, needed no limit"),
        (
            "pods.heavy.spot=false",
            "pods.heavy.spot=true",
            "latents: nodes with an affinity, needed cloud.google.com/gke",
        ),
        ("pods.light.tmp_gib=1", "pods.light.tmp_gib=2", "1024 MiB of disk, needed 2048"),
        ("placement.gpu_resource=amd.com/gpu", "placement.gpus=8", "1 amd.com/gpu, needed 1 nvidia.com/gpu"),
        ("pods.heavy.shared_memory_gib=1", "pods.heavy.shared_memory_gib=2", "1024 MiB of /dev/shm, needed 2048"),
    ],
)
def test_whatever_a_version_fixes_is_compared(given: str, needed: str, text: str) -> None:
    cloud = "placement.cloud=gke"
    assert text in lacks(pods_of("sd15-full", cloud, given), "sd15-full", cloud, needed)


def test_the_first_step_rejects_a_run_for_which_its_own_pipeline_has_too_little(tmp_path: Path) -> None:
    pods = pods_of(RECIPE)
    work.configure(RECIPE, str(tmp_path), "recipe", ["none"], [], pods)
    with pytest.raises(ConfigError, match=r"evaluate, latents: 1 nvidia\.com/gpu, needed 2 nvidia\.com/gpu"):
        work.configure(RECIPE, str(tmp_path), "recipe", ["placement.gpus=1", "pods.heavy.gpus=2"], [], pods)
