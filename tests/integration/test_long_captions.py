"""A whole run whose captions differ in words that one chunk does not reach, up to the code on the model's card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.dataset.reader import ShardReader
from components.dataset.versions import read_version
from components.storage.open import open_storage
from pipeline.config import resolve

pytestmark = pytest.mark.slow

RECIPE = str(Path(__file__).parents[1] / "recipes/small.yaml")
# The text encoder reads eight tokens at once, six of them a caption's.
SAME = "a picture that shows only the color"
PROMPTS = [f"{SAME} red", f"{SAME} blue"]
# What the card prints, with the noise, steps, guidance and size of the evaluation: of these it says nothing.
ALIKE = """
import sys, torch
from diffusers import StableDiffusionPipeline
from components.rng import Stream, normals
torch.set_num_threads(1)
alike = {"latents": torch.from_numpy(normals(0, 0, [0], Stream.SAMPLING, (4, 8, 8))), "guidance_scale": GUIDANCE}
alike |= {"num_inference_steps": 2, "height": 16, "width": 16}
plain = StableDiffusionPipeline.__call__
StableDiffusionPipeline.__call__ = lambda *args, **more: plain(*args, **more, **alike)
"""


def run(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "run", "--recipe", RECIPE, "--workdir", "work"]
    return subprocess.run([*command, *(f"--set={one}" for one in settings)], cwd=folder, capture_output=True, text=True)


@pytest.mark.proof
def test_words_behind_the_first_chunk_are_trained_on_drawn_and_published(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(24):
        channel, prompt = ((0, PROMPTS[0]), (2, PROMPTS[1]))[number % 2]
        pixels = np.random.default_rng(number).integers(0, 90, (16, 16, 3), dtype=np.uint8)
        pixels[..., channel] += 150
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
        (images / f"{number:02d}.txt").write_text(prompt)
    settings = ["launch.spot_drill.step=null", "train.ranks=1", f"evaluate.prompts={json.dumps(PROMPTS)}"]

    ended = run(tmp_path, *settings)
    assert ended.returncode == 65
    assert "latents.text_chunks, now 1" in " ".join(ended.stderr.split())

    ended = run(tmp_path, *settings, "latents.text_chunks=2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    workdir = open_storage(str(tmp_path / "work"))
    (sheet,) = tmp_path.glob("work/runs/*/evaluation/00.png")
    place = sheet.parents[1]
    report = json.loads((place / "report.json").read_text())
    assert report["caption_lengths"] == {"captions": 24, "cut": 0, "tokens": 12}
    evaluation = json.loads((place / "evaluation/evaluation.json").read_text())
    assert evaluation["text"] == {"chunks": 2, "clip_skip": 0}

    key = next(entry.key.split("/")[1] for entry in workdir.list("datasets") if entry.key.endswith("/encoding.json"))
    storage = workdir.child(f"datasets/{key}")
    shard = read_version(storage, evaluation["dataset_digest"]).shards[0]
    reader = ShardReader(storage, shard.name, shard.sha256)
    texts = {str(sample.meta["caption"]): sample.text for sample in map(reader.sample, range(shard.samples))}
    assert {text.shape for text in texts.values()} == {(16, 16)}
    assert len({text.tobytes() for text in texts.values()}) == 2

    (manifest,) = tmp_path.glob("work/models/small/*/manifest.json")
    assert json.loads(manifest.read_text())["text"] == {"chunks": 2, "clip_skip": 0}
    code = manifest.with_name("README.md").read_text().partition("```python\n")[2].partition("\n```")[0]
    code = code.replace("path/to/this/folder", str(manifest.parent))
    guidance = str(resolve(RECIPE).evaluate.guidance)
    for program in (code, ALIKE.replace("GUIDANCE", guidance) + code):
        command = [sys.executable, "-W", "error", "-c", program]
        drawn = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})
        assert drawn.returncode == 0, drawn.stderr
    assert PROMPTS[0] in code
    first = np.asarray(Image.open(sheet).crop((0, 0, 16, 16)), dtype=int)
    assert np.abs(np.asarray(Image.open(tmp_path / "drawn.png"), dtype=int) - first).max() <= 1
