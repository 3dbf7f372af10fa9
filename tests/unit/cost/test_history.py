"""What is known before a run begins: the size of its model by its name or folder, and what earlier runs like it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError
from components.model.manifest import commit_model
from components.model.text_reading import TextReading
from components.model.unet_shape import SD1, SD2, SDXL
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.cost.history import model_size, processes, read_history
from pipeline.cost.plan import Assumptions
from pipeline.cost.planning import make_plan
from pipeline.cost.prices import read_prices

SD2_BASE = "stabilityai/stable-diffusion-2-base"
DEMO: dict[str, Any] = {"name": "demo", "ingest": {"source": "images"}, "train": {"steps": 100, "global_batch": 64}}


def settings(**sections: Any) -> RunConfig:
    """Return the settings of the demo, some of them changed."""
    changed = {name: {**DEMO[name], **one} if name in ("ingest", "train") else one for name, one in sections.items()}
    return RunConfig.parse({**DEMO, **changed})


@pytest.mark.parametrize(
    ("base", "shape"),
    [
        ("runwayml/stable-diffusion-v1-5", SD1),
        ("CompVis/stable-diffusion-v1-4", SD1),
        (SD2_BASE, SD2),
        ("stabilityai/stable-diffusion-xl-base-1.0", SDXL),
        ("someone/SDXL-Fotos", SDXL),
        ("someone/sdxl-with-the-eyes-of-sd2", SDXL),
    ],
)
def test_models_of_the_hub_are_known_by_their_family(base: str, shape: object) -> None:
    model = model_size(settings(model={"base": base}))
    assert model is not None
    assert model.shape == shape


def test_a_model_on_this_machine_is_read(tmp_path: Path) -> None:
    config = {
        "in_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
        "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    }  # fmt: skip
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    model = model_size(settings(model={"base": str(tmp_path)}))
    assert model is not None
    assert model.shape == SD1
    (tmp_path / "unet/config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"unet/config\.json.* JSON"):
        model_size(settings(model={"base": str(tmp_path)}))


def test_chunks_of_text_make_samples_larger_and_steps_slower(tmp_path: Path) -> None:
    one = model_size(settings(model={"base": SD2_BASE}))
    three = model_size(settings(model={"base": SD2_BASE}, latents={"text_chunks": 3}))
    assert one is not None
    assert three is not None
    assert (one.tokens, three.tokens) == (77, 231)
    assert three.forward_flops() > one.forward_flops()
    scratch = model_size(settings(model={"base": None}, latents={"text_chunks": 2}))
    assert scratch is not None
    assert scratch.tokens == 2 * settings().model.scratch.architecture.text.max_tokens
    plans = [
        make_plan(settings(model={"base": SD2_BASE}, latents={"text_chunks": n}), read_prices(), size, None, 1000)
        for n, size in ((1, one), (3, three))
    ]
    first, last = (plan.dataset_bytes for plan in plans)
    assert first is not None
    assert last is not None
    assert last - first == pytest.approx(1000 * 2 * 77 * 1024 * 2, rel=0.02), "fp16 states of two more chunks"


def test_a_base_that_reads_in_chunks_is_planned_with_them(tmp_path: Path) -> None:
    commit_model(LocalStorage(tmp_path), {}, 1, TextReading(2).record)
    (tmp_path / "unet").mkdir()
    unet = {
        "in_channels": 4, "block_out_channels": [8], "layers_per_block": 1,
        "cross_attention_dim": 8, "down_block_types": ["CrossAttnDownBlock2D"],
    }  # fmt: skip
    (tmp_path / "unet/config.json").write_text(json.dumps(unet))
    tokens = []
    for chunks in (None, 1):
        model = model_size(settings(model={"base": str(tmp_path)}, latents={"text_chunks": chunks}))
        tokens.append(model.tokens if model is not None else None)
    assert tokens == [154, 77]


def finished(workdir: Storage, config: RunConfig, speed: Any, started: float) -> None:
    numbers = {
        "run": config.run, "config": config.model_dump(mode="json"), "samples_per_second": speed, "started": started,
        "ledger": {"pulling": 15.0, "loading": 75.0, "useful": 500.0}, "attempts": 3, "images": int(started),
    }  # fmt: skip
    workdir.write_json(f"runs/{config.run}/report.json", numbers)


def test_earlier_runs_of_the_workdir_tell_the_speed() -> None:
    workdir = open_storage("memory://plan-measured")
    config = settings(train={"steps": 500})
    assert read_history(config, workdir) == (None, None)
    finished(workdir, settings(), 120.0, started=100)
    finished(workdir, settings(train={"steps": 101, "ranks": 2}), 300.0, started=200)
    finished(workdir, settings(train={"precision": "bf16"}), 999.0, started=300)
    finished(workdir, settings(train={"steps": 102}), None, started=400)
    finished(workdir, settings(train={"steps": 103}, ingest={"source": "elsewhere"}), None, started=500)
    workdir.write("runs/odd/report.json", b"[1]")
    workdir.write("runs/torn/report.json", b"{")
    speed, images = read_history(config, workdir)
    assert speed is not None
    assert images == 400, "of the newest run on the same source, whatever it was"
    assert speed.images_per_second == pytest.approx(150.0), "two processes made 300"
    assert speed.start_seconds == pytest.approx(30.0)
    four = read_history(settings(train={"steps": 500, "ranks": 4}), workdir).speed
    assert four is not None
    assert four.images_per_second == pytest.approx(600.0)
    plan = make_plan(config, read_prices(), model_size(config), speed)
    assert speed.run in plan.speed_basis
    assert plan.expected is not None
    assumed = make_plan(config, read_prices(), model_size(config), speed, None, Assumptions(start_seconds=90)).expected
    assert assumed is not None
    assert assumed.paid_hours - plan.expected.paid_hours == pytest.approx(60 / 3600)
    assert processes(config) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"base": SD2_BASE}},
        {"placement": {"instance": "p4d.24xlarge"}},
        {"launch": {"where": "trainjob"}},
        {"train": {"steps": 99, "zero_stage": 3}},
        {"train": {"steps": 99, "micro_batch": 7}},
        {"train": {"steps": 99, "performance": {"gradient_checkpointing": True}}},
        {"train": {"steps": 99, "exact_across_world_sizes": True, "zero_stage": 0}},
    ],
)
def test_a_run_of_another_kind_tells_nothing_of_the_speed(tmp_path: Path, change: dict[str, Any]) -> None:
    workdir = open_storage(str(tmp_path))
    finished(workdir, settings(**change), 120.0, started=100)
    assert read_history(settings(), workdir) == (None, 100)


def test_a_run_at_another_resolution_tells_nothing_of_the_speed(tmp_path: Path) -> None:
    workdir = open_storage(str(tmp_path))
    small, large = (settings(model={"base": SD2_BASE}, latents={"resolution": side}) for side in (256, 512))
    finished(workdir, small, 120.0, started=100)
    assert read_history(large, workdir).speed is None
    assert read_history(small, workdir).speed is not None


@pytest.mark.parametrize("speed", [0.0, -1.0, None, "fast"])
def test_a_speed_that_is_none_is_passed_over(tmp_path: Path, speed: Any) -> None:
    workdir = open_storage(str(tmp_path))
    finished(workdir, settings(train={"steps": 99}), 120.0, started=100)
    finished(workdir, settings(), speed, started=200)
    measured, images = read_history(settings(), workdir)
    assert measured is not None
    assert (measured.images_per_second, images) == (120.0, 200)


def test_the_newest_run_counts_whatever_it_is_called(tmp_path: Path) -> None:
    workdir = open_storage(str(tmp_path))
    for name, started in (("a", 300), ("b", 100), ("c", 200)):
        finished(workdir, settings(name=name), float(started), started=started)
    measured, images = read_history(settings(), workdir)
    assert measured is not None
    assert (measured.images_per_second, images) == (300.0, 300)
