"""A model that reads texts in chunks is published with code that draws from it, and says how it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from components.autoencoder.scratch import build_scratch
from components.evaluate.drawing import load_candidate
from components.latents.config import LatentsConfig
from components.latents.encoding_key import encoding_key
from components.latents.text_encoder import TextEncoder
from components.model.locations import fetch
from components.model.sampling import draw, load_model
from components.model.text_reading import AT_ONCE, TextReading, reading_of_model
from components.publish.publishing import WEIGHTS
from components.rng import Stream, normals
from components.storage.local import LocalStorage
from tests.unit.publish.test_publish import TINY, Weights, evaluated, published

CHUNKS = {"chunks": 2, "clip_skip": 0}
# Seven tokens, of which a chunk has six: the last word is in the second chunk.
LONG_PROMPT = "cat cat cat cat cat cat dog"
# One layer can be skipped.
TWO_LAYERS = TINY.model_copy(update={"text": TINY.text.model_copy(update={"layers": 2})})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(TWO_LAYERS, ["a cat and a dog"], seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(base: Path) -> Weights:
    return {name: array * np.float32(1.1) for name, array in load_file(base / WEIGHTS).items()}


@pytest.fixture
def workdir(tmp_path: Path, base: Path, weights: Weights) -> LocalStorage:
    return evaluated(LocalStorage(tmp_path / "work"), base, weights)


def snippet(card: str) -> str:
    """Return the code of a card's section on use, as printed."""
    return card.partition("```python\n")[2].partition("\n```")[0]


@pytest.mark.parametrize("reading", [TextReading(2), TextReading(3, clip_skip=1), TextReading(clip_skip=1)])
def test_code_of_the_card_draws_what_evaluation_draws(
    reading: TextReading,
    workdir: LocalStorage,
    base: Path,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As printed; only the noise, the steps and the size, of which the card says nothing, are those of evaluation."""
    key = "runs/first/evaluation/evaluation.json"
    evaluation = {**workdir.read_json(key), **reading.record}
    evaluation["prompts"] = [{"prompt": LONG_PROMPT, "images": 1, "metrics": {}}]
    workdir.write_json(key, evaluation)
    folder = workdir.local_path(published(workdir, base))
    assert folder is not None
    noise = torch.from_numpy(normals(7, 0, [0], Stream.SAMPLING, (4, 8, 8)))
    alike = {"latents": noise, "num_inference_steps": 3, "guidance_scale": 7.5, "height": 16, "width": 16}
    plain = StableDiffusionPipeline.__call__
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", lambda *args, **more: plain(*args, **more, **alike))
    monkeypatch.chdir(tmp_path)
    code = snippet((folder / "README.md").read_text())
    exec(code.replace("path/to/this/folder", str(folder)), {})
    printed = np.asarray(Image.open("drawn.png"), dtype=int)

    def evaluated(prompt: str, reading: TextReading) -> NDArray[np.int64]:
        model = load_candidate(base, weights, "here", torch.device("cpu"), reading)
        monkeypatch.setattr(StableDiffusionPipeline, "__call__", plain)
        images = draw(*model, prompts=[prompt], seeds=[7], steps=3, guidance=7.5, height=16, width=16)
        return np.asarray(images[0], dtype=np.int64)

    assert np.abs(printed - evaluated(LONG_PROMPT, reading)).max() <= 1  # the rounding of sums
    assert np.abs(printed - evaluated(LONG_PROMPT, AT_ONCE)).max() > 1, "read otherwise, it is another image"
    if reading.chunks > 1:
        assert np.abs(printed - evaluated(LONG_PROMPT.replace("dog", "owl"), reading)).max() > 1


def test_the_model_says_how_it_reads_and_is_another_version(workdir: LocalStorage, base: Path) -> None:
    plain = published(workdir, base)
    assert "text" not in workdir.read_json(f"{plain}/manifest.json")
    assert "chunks" not in workdir.read(f"{plain}/README.md").decode()
    key = "runs/first/evaluation/evaluation.json"
    workdir.write_json(key, {**workdir.read_json(key), "text": CHUNKS})
    chunked = published(workdir, base)
    assert chunked != plain
    folder = fetch(f"workdir:{chunked}", workdir)
    assert reading_of_model(folder) == TextReading(**CHUNKS)
    assert load_model(folder, torch.device("cpu")).reading == TextReading(**CHUNKS), "a champion draws as trained"
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (folder.parent / Path(plain).name).iterdir()
    }


def test_a_fine_tune_reads_as_its_base_unless_told_otherwise(workdir: LocalStorage, base: Path) -> None:
    key = "runs/first/evaluation/evaluation.json"
    workdir.write_json(key, {**workdir.read_json(key), "text": CHUNKS})
    folder = fetch(f"workdir:{published(workdir, base)}", workdir)
    inherited, two, one = (encoding_key(folder, LatentsConfig(text_chunks=chunks)) for chunks in (None, 2, 1))
    assert inherited == two != one
    states = TextEncoder(folder, LatentsConfig(), torch.device("cpu")).encode([""])[""].states
    assert states.shape == (16, 16)
