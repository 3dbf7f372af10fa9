"""README's two lines for one's own images, on photos that are drawn here: from a folder to a model that is right."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.drawn_photos import SCENES, draw_photo, write_photos

pytestmark = pytest.mark.proof

# As they stand in README.md.
LINES = ("darkroom init photos", "darkroom run --recipe photos.yaml")
PROMPTS = {f"a photo of a {scene.replace('_', ' ')}": scene for scene in SCENES}
SIDE = 64
PER_PROMPT = 8
# Of two cores, which is six minutes if both are always busy.
MOST_PROCESSOR_SECONDS = 720

Features = Callable[[Sequence[Image.Image]], NDArray[np.float64]]


def test_readme_has_the_lines() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert "\n".join(f"    {line}" for line in LINES) in readme


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody has photos, and has typed README's lines."""
    home: Path = tmp_path_factory.mktemp("home")
    write_photos(home / "photos")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for line in LINES:
        _, *arguments = shlex.split(line)
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments], cwd=home, env=_environment(), check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < MOST_PROCESSOR_SECONDS
    return home


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def drawn(home: Path) -> dict[str, list[Image.Image]]:
    """Draw with the published model as anybody would, without any of Darkroom's code."""
    import torch
    from diffusers import StableDiffusionPipeline

    folder = home / "workdir" / report(home)["published"]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images = {}
    for number, prompt in enumerate(PROMPTS):
        generators = [torch.Generator().manual_seed(1000 * number + i) for i in range(PER_PROMPT)]
        images[prompt] = pipeline(
            [prompt] * PER_PROMPT, num_inference_steps=20, guidance_scale=2.0, height=SIDE, width=SIDE,
            generator=generators,
        ).images  # fmt: skip
    return images


def report(home: Path) -> dict[str, Any]:
    (path,) = (home / "workdir/runs").glob("*/report.json")
    numbers: dict[str, Any] = json.loads(path.read_text())
    return numbers


def test_a_model_is_published_and_every_file_is_accounted_for(home: Path) -> None:
    numbers = report(home)
    assert numbers["published"] is not None, numbers["reason"]
    assert (numbers["images"], numbers["rejected"]) == (240, 6)
    assert (numbers["preemptions"], numbers["attempts"]) == (0, 1), "nothing of the demo's drill"


def test_the_prompts_come_from_the_photos(home: Path) -> None:
    (path,) = (home / "workdir/runs").glob("*/config.json")
    config = json.loads(path.read_text())
    assert set(config["evaluate"]["prompts"]) == set(config["train"]["samples"]["prompts"]) == set(PROMPTS)


def test_captions_are_whole(home: Path) -> None:
    """No caption is cut, and captions that differ stay different for the model."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(home / "workdir" / report(home)["published"] / "tokenizer")
    captions = sorted(set(_captions(home)))
    assert len(captions) > len(PROMPTS)
    tokens = [tuple(tokenizer(caption).input_ids) for caption in captions]
    assert max(map(len, tokens)) <= tokenizer.model_max_length
    assert len(set(tokens)) == len(captions)


def _captions(home: Path) -> Iterator[str]:
    for path in (home / "workdir/captions").rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            yield from (caption["text"] for caption in json.loads(line).get("captions", ()))


@pytest.mark.parametrize("name", ["pixels", "colours", "convolutions"])
def test_what_is_drawn_for_a_prompt_is_nearest_to_the_photos_of_its_scene(
    drawn: dict[str, list[Image.Image]], name: str
) -> None:
    features = _features(name)
    centres = {scene: features(_real(scene)).mean(axis=0) for scene in SCENES}
    nearest = []
    for prompt, images in drawn.items():
        for vector in features(images):
            nearest.append((PROMPTS[prompt], min(SCENES, key=lambda scene: np.linalg.norm(vector - centres[scene]))))
    right = sum(asked == shown for asked, shown in nearest)
    assert len(nearest) == len(SCENES) * PER_PROMPT
    assert right / len(nearest) >= 0.9, [pair for pair in nearest if pair[0] != pair[1]]


def _real(scene: str) -> list[Image.Image]:
    """Return photos of a scene that no run has seen, framed as a run frames them."""
    photos = (draw_photo(scene, np.random.default_rng([99, number])) for number in range(24))
    return [photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for photo in photos]


def _features(name: str) -> Features:
    from components.evaluate.features import RandomFeatures

    extractors: dict[str, Features] = {"pixels": _pixels, "colours": _colours, "convolutions": RandomFeatures(SIDE)}
    return extractors[name]


def _pixels(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Return the colours of an 8 × 8 grid, ``[N, 192]``: what is where."""
    return np.stack([np.asarray(image.resize((8, 8), Image.Resampling.BOX)).ravel() / 255 for image in images])


def _colours(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Return histograms of 4 × 4 × 4 colours, ``[N, 64]``: what is there, wherever it is."""
    bins = [np.asarray(image).astype(int) // 64 for image in images]  # [H, W, 3]
    codes = [(one @ np.array([16, 4, 1])).ravel() for one in bins]
    return np.stack([np.bincount(code, minlength=64) / len(code) for code in codes])
