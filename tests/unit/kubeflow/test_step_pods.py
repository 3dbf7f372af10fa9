"""What the pod of each step asks for, from the settings and the site alone."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.kubeflow.release import Site
from pipeline.kubeflow.step_pods import on_cluster, step_names
from pipeline.pod import StepPod

BASE = "stabilityai/stable-diffusion-2-base"


def pod(step: str, site: dict[str, Any] | None = None, **sections: Any) -> StepPod:
    values = {"name": "x", "ingest": {"source": "images"}, "model": {"base": BASE}, **sections}
    return on_cluster(RunConfig.parse(values), Site.parse(site or {}))(step)


@pytest.mark.parametrize(("trained", "asked", "gpus"), [(8, None, 1), (1, None, 1), (0, None, 0), (0, 2, 2), (8, 0, 0)])
def test_a_step_takes_one_gpu_of_those_that_training_has_unless_told(
    trained: int, asked: int | None, gpus: int
) -> None:
    step = pod("latents", placement={"gpus": trained}, pods={"heavy": {"gpus": asked}})
    assert step.gpus == gpus
    assert step.gpu_resource == ("nvidia.com/gpu" if gpus else "")


@pytest.mark.parametrize(
    ("step", "sections", "gpus"),
    [
        ("autoencoder", {}, 0),
        ("autoencoder", {"model": {}, "latents": {"resolution": 32}}, 1),
        ("caption", {"caption": {"sources": ["sidecar"]}}, 0),
        ("caption", {"caption": {"sources": ["sidecar", "model"], "model": ["blip"]}}, 1),
        ("latents", {}, 1),
        ("evaluate", {}, 1),
        ("publish", {}, 0),
        ("ingest", {}, 0),
    ],
)
def test_only_steps_that_compute_with_a_model_take_a_gpu(step: str, sections: dict[str, Any], gpus: int) -> None:
    assert pod(step, placement={"gpus": 8}, **sections).gpus == gpus


def test_training_in_its_own_step_stays_off_spot_machines_whatever_other_steps_do() -> None:
    chosen: dict[str, Any] = {"placement": {"cloud": "gke", "gpus": 8}, "pods": {"heavy": {"spot": True}}}
    assert pod("latents", **chosen).node_selector == {"cloud.google.com/gke-spot": "true"}
    train = pod("train", **chosen)
    assert (train.gpus, train.node_selector) == (8, {})
    assert train.node_affinity is not None


def test_secrets_are_those_that_a_step_uses_and_two_may_be_one() -> None:
    one = {"secrets": {"s3": "all", "huggingFace": "all", "wandb": "all"}}
    store = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert pod("train", one).secrets == {"all": (*store, "HF_TOKEN", "WANDB_API_KEY")}
    assert pod("latents", one).secrets == {"all": (*store, "HF_TOKEN")}
    assert pod("train", one, launch={"where": "trainjob"}).secrets == {"all": store}
    assert pod("latents").secrets == {}


def test_only_the_step_that_creates_trainjobs_gets_the_launchers_account() -> None:
    site = {"launcher_secret": "darkroom-launcher"}
    on_nodes = {"launch": {"where": "trainjob"}}
    folders = {step: pod(step, site, **on_nodes).secret_folders for step in step_names()}
    assert folders.pop("train") == {"darkroom-launcher": "/var/run/secrets/darkroom/launcher"}
    assert set(map(str, folders.values())) == {"{}"}
    assert pod("train", site).secret_folders == {}, "it trains in its own pod"
    assert pod("train", **on_nodes).secret_folders == {}, "the release has no such account"


def test_a_part_of_a_mebibyte_is_a_whole_one() -> None:
    assert pod("ingest", pods={"light": {"memory_gib": 0.0001, "tmp_gib": 1.5}}).memory_mib == 1
    assert pod("ingest", pods={"light": {"memory_gib": 0.0001, "tmp_gib": 1.5}}).tmp_mib == 1536


def test_the_launcher_may_take_a_day_longer_than_its_training() -> None:
    assert pod("train", launch={"deadline_hours": 2.5}).seconds == 26.5 * 3600
    assert pod("train").seconds == 0
