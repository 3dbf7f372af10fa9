"""What would end a run after hours is found before it begins, all of it at once, with the fix."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from components.errors import ConfigError
from components.model.devices import Gpu
from components.storage.open import open_storage
from pipeline import work
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.cost.plan import Assumptions
from pipeline.cost.prices import read_prices
from pipeline.cost.stored_plan import plan_run
from pipeline.launch.checks.preflight import disk_problems, machine_problems
from pipeline.work import check
from tests.images import encoded, folder, noise, put

A100 = Gpu("NVIDIA A100-SXM4-40GB", 40 * 2**30)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def settings(**sections: Any) -> RunConfig:
    return RunConfig.parse({"name": "mine", "ingest": {"source": "images"}, **sections})


def opened(config: RunConfig, tmp_path: Path) -> work.OpenRun:
    return work.OpenRun(config, open_storage(str(tmp_path / "work")))


def base_of_an_editor(tmp_path: Path) -> str:
    """A folder with the configs of a model that fills holes, whose weights are pickles."""
    model = tmp_path / "painter"
    classes = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
    index = {part: ["diffusers", name] for part, name in classes.items()} | {
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]
    }  # fmt: skip
    configs = {
        "model_index.json": index, "unet/config.json": {"in_channels": 9, "cross_attention_dim": 768},
        "vae/config.json": {"latent_channels": 4}, "text_encoder/config.json": {"hidden_size": 768},
        "scheduler/scheduler_config.json": {}, "tokenizer/tokenizer_config.json": {},
    }  # fmt: skip
    for name, values in configs.items():
        put(model / name, json.dumps(values).encode(), words=None)
    put(model / "unet/diffusion_pytorch_model.bin", b"pickle", words=None)
    return str(model)


def test_all_problems_are_listed_together(tmp_path: Path) -> None:
    captioner = put(tmp_path / "filter/config.json", b"{}", words=None).parent
    config = settings(
        model={"base": base_of_an_editor(tmp_path)},
        caption={"filters": {"nsfw": {"model": str(captioner)}}},
        train={"ranks": 1000},
        evaluate={"device": "cuda"},
    )
    with pytest.raises(ConfigError) as caught:
        check(opened(config, tmp_path), "here")
    text = str(caught.value)
    assert text.startswith("7 problems:"), text
    names = ("model.base", "9 channels", "vae", "pickle", "nsfw.model", "train.ranks", "1000", "evaluate.device")
    assert all(name in text for name in names), text


def test_a_run_that_can_begin_begins(tmp_path: Path) -> None:
    check(opened(settings(caption={"model": None}), tmp_path), "here")


def test_who_only_submits_does_not_judge_what_the_pods_see(tmp_path: Path) -> None:
    config = settings(model={"base": "someone/model"}, caption={"filters": {"nsfw": {"model": "/models/nsfw"}}})
    check(opened(config, tmp_path), "client")
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*model\.base.*reached.*nsfw"):
        check(opened(config, tmp_path), "pod")


def test_a_light_pod_leaves_models_to_the_pods_that_load_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("huggingface_hub", "transformers", "torch", "diffusers", "accelerate", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    config = settings(model={"base": "someone/model"}, train={"metrics": {"trackers": ["wandb"]}})
    check(opened(config, tmp_path), "pod")
    with pytest.raises(ConfigError, match="inpainting"):
        check(opened(settings(model={"base": base_of_an_editor(tmp_path)}), tmp_path), "pod")


def test_submit_checks_before_it_connects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = f"model.base={json.dumps(base_of_an_editor(tmp_path))}"
    where = ["--source", "s3://bucket/images", "--workdir", "s3://bucket/work"]
    assert main(["submit", "--recipe", "scratch", *where, "--set", base]) == ConfigError.exit_code
    assert "inpainting" in capsys.readouterr().err


def test_the_configure_step_checks(tmp_path: Path) -> None:
    overrides = [f"model.base={json.dumps(base_of_an_editor(tmp_path))}"]
    with pytest.raises(ConfigError, match="inpainting"):
        work.configure("scratch", str(tmp_path / "work"), str(tmp_path), overrides)


@pytest.mark.parametrize(
    ("changes", "devices", "cores", "expected"),
    [
        ({}, (), 1, []),
        ({"train": {"ranks": 4}}, (), 1, []),
        ({"train": {"ranks": 5}}, (), 1, ["train.ranks"]),
        ({"train": {"ranks": 2}}, (A100,), 16, ["train.ranks"]),
        ({"train": {"ranks": 2}}, (A100, A100), 16, []),
        ({"caption": {"device": "cuda"}}, (), 1, ["caption.device"]),
        ({"caption": {"device": "cuda"}}, (A100,), 1, []),
        ({"caption": {"filters": {"device": "cuda"}}}, (), 1, ["caption.filters.device"]),
    ],
)
def test_settings_and_machine_agree(
    changes: dict[str, Any], devices: tuple[Gpu, ...], cores: int, expected: list[str]
) -> None:
    problems = list(machine_problems(settings(**changes), devices, cores))
    assert [problem.setting for problem in problems] == expected


def listed(tmp_path: Path, images: Path, *overrides: str) -> dict[str, Any]:
    """List images in a run of their own, as the pipeline does."""
    short = ["train.optimizer.warmup_steps=0", *overrides]  # a few images make few steps
    config = work.configure("scratch", str(tmp_path / "work"), str(images), short)
    return dict(work.run_step("ingest", config))


def test_images_without_captions_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"images/{number}.png", encoded(noise(number)), words=None)
    with pytest.raises(ConfigError, match=r"caption\.sources: none of the 3 images.*folder.*fixed.*missing=empty"):
        listed(tmp_path, tmp_path / "images")
    listed(tmp_path, tmp_path / "images", "caption.missing=empty")
    listed(tmp_path, tmp_path / "images", "caption.sources=[fixed]", "caption.fixed=a thing")


def test_a_captioner_is_looked_for_if_an_image_needs_it(tmp_path: Path) -> None:
    images, overrides = folder(tmp_path / "images"), ("caption.sources=[sidecar,model]", "caption.model=blip")
    assert listed(tmp_path, images, *overrides)["images"] == 2
    put(images / "bare.png", encoded(noise(7)), words=None)
    with pytest.raises(ConfigError, match=r"caption\.model: 1 of 3 images.*Salesforce/blip.*hub cannot be reached"):
        listed(tmp_path, images, *overrides)
    record = open_storage(str(tmp_path / "work")).child("runs")
    (failed,) = [
        values for entry in record.list() if entry.key.endswith("ingest.json")
        if (values := record.read_json(entry.key))["status"] == "failed"
    ]  # fmt: skip
    assert "caption.model" in failed["error"]


def test_label_files_that_are_missing_are_named(tmp_path: Path) -> None:
    images = folder(tmp_path / "images")
    with pytest.raises(ConfigError, match=r"labels\.csv"):
        listed(tmp_path, images, "caption.sources=[labels]", "caption.labels.layout=csv")


def test_epochs_that_are_too_short_and_absurd_ones_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path / "images")
    with pytest.raises(ConfigError, match=r"train\.epochs: 1 on 2 samples.*warmup_steps \(20\)"):
        listed(tmp_path, images, "train.epochs=1", "train.optimizer.warmup_steps=20")
    listed(tmp_path, images, "train.steps=100000", "train.epochs=null")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"warning"' in line]
    assert "100,000 steps of 64" in events[-1]["text"]


def test_a_run_that_does_not_fit_the_disk_is_named(tmp_path: Path) -> None:
    plan = plan_run(settings(), read_prices(), None, 100, Assumptions())
    workdir = open_storage(str(tmp_path / "not/yet/there"))
    assert list(disk_problems(plan, workdir)) == []
    free = shutil.disk_usage(tmp_path).free
    (problem,) = disk_problems(replace(plan, checkpoint_bytes=free), workdir)
    assert problem.setting == "train.checkpoint.keep"
    assert "GB free" in problem.text
    assert list(disk_problems(replace(plan, checkpoint_bytes=free), open_storage("memory://store"))) == []
