"""A tiny workdir in which a run has finished, with every kind of file that Darkroom keeps, made in this process."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.accounting.ledger import append_ledger, ledger_lines
from components.model import checkpoints
from components.model.locations import fetch
from components.storage.local import LocalStorage
from pipeline import work
from pipeline.launch.books.earlier_trainings import TRAINING
from pipeline.launch.state import StateFile

RECIPE = str(Path(__file__).parents[1] / "recipes/small.yaml")
IMAGES, STEP = 12, 8
OVERRIDES = [
    "ingest.lanes=1",
    "model.scratch.training.steps=2",
    "model.scratch.training.warmup_steps=0",
    "launch.spot_drill.step=null",
    "evaluate.images_per_prompt=2",
]


@dataclass
class Finished:
    """The workdir, the run's settings as the steps are given them, and what the steps gave."""

    storage: LocalStorage
    config: str
    results: dict[str, Any]

    @property
    def run(self) -> LocalStorage:
        return self.storage.child(f"runs/{work.open_run(self.config).run}")

    def step(self, name: str, lane: str | None = None) -> dict[str, Any]:
        """Let a step work, in this process."""
        result = dict(work.run_step(name, self.config, self.results, lane))
        self.results |= {key: value for key, value in result.items() if isinstance(value, str)}
        return result


def finish(root: Path) -> Finished:
    """Run all steps; training leaves what it would leave, with the base's own weights."""
    (root / "images").mkdir(parents=True)
    for number in range(IMAGES):
        _paint(root / "images", number)
    config = work.configure(RECIPE, str(root / "work"), str(root / "images"), OVERRIDES)
    finished = Finished(LocalStorage(root / "work"), config, {})
    for name, lane in (
        ("ingest", None), ("caption", "00"), ("clean", None), ("autoencoder", None), ("latents", "00"), ("index", None),
    ):  # fmt: skip
        finished.step(name, lane)
    finished.results["dataset"] = finished.results["dataset_digest"]
    _train(finished)
    for name in ("evaluate", "publish"):
        finished.step(name)
    work.write_report(work.open_run(config), "done", work.StepProgress("report"))
    return finished


def _paint(folder: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 90, (20, 24, 3), dtype=np.uint8)
    pixels[..., 2 * (number % 2)] += 150
    Image.fromarray(pixels).save(folder / f"{number:02}.png")
    if number:  # the first has no caption, and is rejected
        (folder / f"{number:02}.txt").write_text(f"a {('red', 'blue')[number % 2]} picture")


def _train(finished: Finished) -> None:
    from safetensors.numpy import load_file

    run, base = finished.run, fetch(finished.results["base_model"], finished.storage)
    weights = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    pieces = [
        checkpoints.Piece(name, 0, dict.fromkeys(checkpoints.KINDS, array.ravel())) for name, array in weights.items()
    ]
    shapes = {name: array.shape for name, array in weights.items()}
    save = checkpoints.Save(STEP, {"updates": STEP}, 1, "training", shapes, "gang")
    checkpoints.write_part(run, save, 0, pieces)
    assert checkpoints.commit(run, save)
    run.write_json(TRAINING, {"dataset": finished.results["dataset"]})
    run.append_lines("metrics.jsonl", ({"step": step, "loss": 1 / step, "seconds": 0.5} for step in range(1, STEP + 1)))
    ends = {"attempt-started": 10.0, "training": 12.0, "attempt-ended": 20.0}
    run.append_lines("events.jsonl", ({"time": at, "event": event, "attempt": 0} for event, at in ends.items()))
    append_ledger(run, ledger_lines(0, {"loading": 2.0, "useful": 4.0, "idle": 4.0}))
    sheet = io.BytesIO()
    Image.new("RGB", (32, 16)).save(sheet, "PNG")
    run.write("samples/step-000000008.png", sheet.getvalue())
    StateFile(run).update(jobs=1, attempts=1)
    run.write_json("micro_batch.json", {"micro_batch": 2})
    run.write_json("samples/index.json", {"prompts": ["a", "b"], "size": [16, 16], "steps": [STEP]})
