"""``darkroom compile --trainjob``: what people read, and hold against their cluster, is what a run submits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import ConfigError
from pipeline.cli import main
from pipeline.config import resolve
from pipeline.kubeflow.compile import trainjobs
from pipeline.kubeflow.release import Deployment
from pipeline.launch.context import TrainerArguments
from pipeline.launch.render import render

RELEASE = {"cloud": "gke", "queue": "darkroom", "workdir": "s3://here/work", "env": {"AWS_REGION": "eu-west-1"}}


def test_there_is_one_for_each_pool_as_the_launcher_submits_it() -> None:
    deployment = Deployment.parse(RELEASE)
    jobs = list(yaml.safe_load_all(trainjobs(deployment, "sd15-full", ["train.steps=7000"])))
    settings = resolve("sd15-full", [*deployment.cluster, "train.steps=7000"])
    data = ("BASE_MODEL", "ENCODING_KEY", "DATASET", settings.seed, settings.train)
    arguments, placement = TrainerArguments(settings.run, "s3://here/work", *data), settings.placement
    pools: tuple[Any, ...] = ("spot", "on-demand")
    assert jobs == [render(arguments, placement, pool, 2, 1, environment=deployment.env) for pool in pools]
    assert all({"name": "AWS_REGION", "value": "eu-west-1"} in job["spec"]["trainer"]["env"] for job in jobs)
    assert len(list(yaml.safe_load_all(trainjobs(Deployment.parse({"cloud": "kind"}), "digits")))) == 1, "no spot there"


def test_it_says_how_long_there_is_to_save_and_what_only_the_run_knows() -> None:
    epochs = ["train.epochs=2", "train.steps=null"]
    text = trainjobs(Deployment.parse(RELEASE), "sd15-full", epochs)
    assert "# Pool spot: 9 s to save, of the 15 s" in text
    assert "# Pool on-demand: 600 s to save, of the 630 s" in text
    assert "# The run gives train.steps for train.epochs" in text


def test_a_run_that_submits_none_says_so() -> None:
    with pytest.raises(ConfigError, match=r"launch\.where is local.*set launch\.where=trainjob"):
        trainjobs(Deployment.parse(RELEASE), "demo")


def test_the_command_prints_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", "--trainjob", "--recipe", "sd15-full", "--set", "placement.cloud=eks"]) == 0
    jobs = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [job["metadata"]["annotations"]["darkroom.dev/pool"] for job in jobs] == ["spot", "on-demand"]
    assert list(tmp_path.iterdir()) == []
