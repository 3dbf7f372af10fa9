"""What keeps a model from being trained is named before anything is downloaded or encoded, all of it at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.autoencoder.scratch import build_scratch
from components.model.architecture import Architecture
from components.model.parts import ModelFiles, files_of_folder, part_problems

TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
        "unet": {"channels": [4, 4], "cross_attention": [True, False], "norm_groups": 2, "attention_heads": 2},
    }
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    build_scratch(TINY, ["a red square"], seed=1).save_pretrained(folder)
    return folder


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    """Return what changes some values of a model's JSON file."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**values, **changes}))

    return edit


def pickled(folder: Path) -> None:
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / part / f"{name}.safetensors").rename(folder / part / f"{name}.bin")


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a model that fills holes": (edited("unet/config.json", in_channels=9), ["9 channels (an inpainting model)"]),
    "a model that edits": (edited("unet/config.json", in_channels=8), ["8 channels (a model that edits"]),
    "SDXL": (
        edited("model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        ["two text encoders (SDXL)"],
    ),
    "a UNet of SDXL": (edited("unet/config.json", addition_embed_type="text_time"), ["text_time"]),
    "another text encoder": (edited("text_encoder/config.json", hidden_size=768), ["width 8", "writes 768"]),
    "a flow": (edited("scheduler/scheduler_config.json", prediction_type="flow"), ["'flow'", "v_prediction"]),
    "only pickles": (pickled, ["no safetensors in vae/", "no safetensors in unet/", "no safetensors in text_encoder/"]),
    "a config that is no object": (lambda folder: (folder / "unet/config.json").write_text("[]"), ["unet/config.json"]),
    "a part that is no entry": (edited("model_index.json", unet="UNet"), ["has no unet"]),
    "an index that is no object": (lambda folder: (folder / "model_index.json").write_text("3"), ["model_index.json"]),
}


def test_a_model_that_can_be_trained_has_no_problem(base: Path) -> None:
    assert list(part_problems(files_of_folder(base), "base")) == []


@pytest.mark.parametrize("case", CASES)
def test_each_problem_is_named(base: Path, tmp_path: Path, case: str) -> None:
    damage, words = CASES[case]
    shutil.copytree(base, tmp_path / "copy")
    damage(tmp_path / "copy")
    problems = list(part_problems(files_of_folder(tmp_path / "copy"), "some/model"))
    assert all("'some/model'" in problem for problem in problems)
    assert all(word in "\n".join(problems) for word in words), problems
    assert len(problems) == (3 if case == "only pickles" else 1)


def test_only_small_files_are_read(base: Path) -> None:
    whole, read = files_of_folder(base), []

    def note(name: str) -> bytes:
        read.append(name)
        return whole.read(name)

    assert list(part_problems(ModelFiles(whole.names, note), "base")) == []
    assert all(name.endswith(".json") for name in read)
