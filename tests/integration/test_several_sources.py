"""Two folders as one source: images once each, repeats in training, and what a second source adds costs only itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.dataset.versions import read_version
from components.storage.open import open_storage
from components.train.config import steps_of_epochs
from tests.drawn_photos import write_photos

pytestmark = pytest.mark.proof

QUICK = (
    *("train.epochs=4", "model.scratch.training.steps=20", "index.held_out=0.2", "train.checkpoint.every=5"),
    *("evaluate.images_per_prompt=2", "evaluate.steps=2", "train.ranks=1", "train.global_batch=8"),
    *("train.micro_batch=8", "train.optimizer.warmup_steps=2"),
)


def darkroom(home: Path, *arguments: str) -> str:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], cwd=home, check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def steps(home: Path, run: str, step: str) -> list[dict[str, Any]]:
    """What a step of a run returned, lane by lane."""
    (folder,) = (home / "workdir/runs").glob(f"{run}-*/steps")
    return [json.loads(path.read_text())["result"] for path in sorted(folder.glob(f"{step}*.json"))]


def test_two_folders_make_one_model_and_a_repeat_only_trains_anew(tmp_path: Path) -> None:
    write_photos(tmp_path / "first", 5)
    write_photos(tmp_path / "second", 7)
    shown = darkroom(tmp_path, "run", "--source", "first", "--source", "second", "--set", *QUICK, "name=plain")
    assert "of 2 sources" in shown
    (ingested,), (indexed,) = steps(tmp_path, "plain", "ingest"), steps(tmp_path, "plain", "index")
    first, second = ingested["sources"]
    assert first["images"] + second["images"] == ingested["images"]
    assert sum(row["images"] for row in indexed["sources"]) == indexed["images"] == ingested["images"] - 1, "a cut file"

    sources = "[{source: first, repeats: 3.0}, second]"
    (recipe,) = (tmp_path / "workdir/recipes").glob("first-second-*.yaml")
    darkroom(tmp_path, "run", "--recipe", str(recipe), "--set", *QUICK, "name=often", f"ingest.sources={sources}")
    assert sum(one["captioned"] for one in steps(tmp_path, "often", "caption")) == 0
    assert sum(one["encoded"] for one in steps(tmp_path, "often", "latents")) == 0
    (often,) = steps(tmp_path, "often", "index")
    assert [row["repeats"] for row in often["sources"]] == [3.0, 1.0]
    assert often["dataset_digest"] != indexed["dataset_digest"]
    (dataset,) = (tmp_path / "workdir/datasets").iterdir()
    plain, repeated = (read_version(open_storage(str(dataset)), one["dataset_digest"]) for one in (indexed, often))
    assert plain.epoch_samples == plain.train_samples == repeated.train_samples
    samples = [row["samples"] for row in often["sources"]]
    assert repeated.epoch_samples == 3 * samples[0] + samples[1]
    (trained,) = steps(tmp_path, "often", "train")
    assert trained["step"] == steps_of_epochs(4, repeated.epoch_samples, 8)
