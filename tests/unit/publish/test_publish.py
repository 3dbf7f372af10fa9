"""A published model draws in plain diffusers, holds no pickle, and is there whole or not at all."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from components.autoencoder.scratch import build_scratch
from components.digests import sha256
from components.errors import DamagedFile, DataError
from components.model import checkpoints
from components.model.architecture import Architecture, AutoencoderArchitecture, TextArchitecture, UnetArchitecture
from components.model.champion import read_champion, weights_sha256
from components.model.locations import fetch
from components.model.metric_results import FORMAT, MetricResult, plain_metrics
from components.progress import Progress
from components.publish.__main__ import main
from components.publish.card import escape
from components.publish.config import PublishConfig
from components.publish.publishing import WEIGHTS, publish
from components.storage.base import Storage
from components.storage.local import LocalStorage
from tests.models import flip, forget_checks

HOSTILE = "<script>alert(1)</script> | `x` [a](javascript:b)\n# \u202e***"
TINY = Architecture(
    resolution=16,
    autoencoder=AutoencoderArchitecture(channels=(8, 8), norm_groups=4),
    text=TextArchitecture(vocabulary=600, max_tokens=8, hidden=16, layers=1, heads=2),
    unet=UnetArchitecture(channels=(8, 16), norm_groups=4, attention_heads=2, cross_attention=(False, True)),
)
# What somebody runs who has diffusers and has never heard of Darkroom.
STRANGER = """
import sys, torch
from diffusers import StableDiffusionPipeline
torch.set_num_threads(1)
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(3)
image = pipeline("a cat", num_inference_steps=3, height=16, width=16, generator=generator).images[0]
image.save(sys.argv[2])
"""
METRICS = {
    "x": MetricResult("X", "what it is", "share", "higher", "how", 4, "measured", 0.75, 1.0, "real images", ""),
    "y": MetricResult("Y", HOSTILE, "number", "lower", "how", 4, "not run", None, None, "real images", "no judge"),
}
Weights = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, ["a cat"], seed=1).save_pretrained(folder)
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["requires_safety_checker"] = True
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def weights(base: Path) -> Weights:
    return {
        name: array * np.float32(0.9)
        for name, array in load_file(base / "unet/diffusion_pytorch_model.safetensors").items()
    }


@pytest.fixture
def workdir(tmp_path: Path, base: Path, weights: Weights) -> LocalStorage:
    return evaluated(LocalStorage(tmp_path / "work"), base, weights)


def evaluated(workdir: LocalStorage, base: Path, weights: Weights, run: str = "first") -> LocalStorage:
    """Leave what train and evaluate leave of a run."""
    place = workdir.child(f"runs/{run}")
    pieces = [
        checkpoints.Piece(name, 0, {kind: array.ravel() * (kind == "ema") for kind in checkpoints.KINDS})
        for name, array in weights.items()
    ]
    shapes = {name: array.shape for name, array in weights.items()}
    save = checkpoints.Save(10, {"updates": 10}, 1, "training", shapes, "gang")
    checkpoints.write_part(place, save, 0, pieces)
    assert checkpoints.commit(place, save)
    evaluation = {
        "format": FORMAT,
        "step": 10,
        "base_model": str(base),
        "weights_sha256": weights_sha256(weights),
        "measurement": "m" * 64,
        "dataset_digest": "d" * 64,
        "size": [16, 16],
        "metrics": plain_metrics(METRICS),
        "prompts": [{"prompt": HOSTILE, "images": 4, "metrics": {"x": 0.75}}],
        "captions_by": {"sidecar+shuffled": 1200, f"model:{HOSTILE}@1": 3},
        "caption_lengths": {"captions": 1203, "cut": 1100, "tokens": 77},
        "better": True,
    }
    place.write_json("evaluation/evaluation.json", evaluation)
    place.write_json(
        "config.json", {"seed": 1, "train": {"steps": 10, "note": HOSTILE}, "ingest": {"source": "/secret"}}
    )
    return workdir


def published(workdir: Storage, base: Path, run: str = "first", now: float = 1.5, **settings: Any) -> str:
    config = PublishConfig.parse(settings)
    done = publish(config, "cats", run, str(base), workdir, Progress(io.StringIO()), lambda: now)
    assert done["published"] == f"models/cats/{done['version']}"
    return str(done["published"])


def contents(workdir: Storage, prefix: str = "models") -> dict[str, bytes]:
    return {entry.key: workdir.read(entry.key) for entry in workdir.list(prefix)}


def test_a_stranger_draws_with_it(workdir: LocalStorage, base: Path, weights: Weights, tmp_path: Path) -> None:
    folder = workdir.local_path(published(workdir, base))
    drawn = tmp_path / "drawn.png"
    command = [sys.executable, "-W", "error", "-c", STRANGER, str(folder), str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.returncode == 0, done.stderr
    assert "safety" not in done.stderr
    pipeline = build_scratch(TINY, ["a cat"], seed=1)
    pipeline.unet.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    image = pipeline("a cat", num_inference_steps=3, height=16, width=16, generator=generator).images[0]
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(Image.open(drawn), dtype=int))
    assert difference.max() <= 1, "the moving average's weights, and none of the checkpoint's others"


def test_it_holds_what_diffusers_needs_and_no_pickle(workdir: LocalStorage, base: Path, weights: Weights) -> None:
    path = published(workdir, base)
    files = {key.removeprefix(f"{path}/"): data for key, data in contents(workdir, path).items()}

    assert sorted(files) == [
        "COMMIT",
        "README.md",
        "manifest.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    digests = json.loads(files["manifest.json"])["sha256"]
    assert digests == {name: sha256(files[name]) for name in files if name not in ("COMMIT", "manifest.json")}
    assert files["COMMIT"].decode() == sha256(files["manifest.json"])
    folder = workdir.local_path(path)
    assert folder is not None
    found = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in weights.items()
    }


def test_the_champion_tells_where_it_comes_from(workdir: LocalStorage, base: Path, weights: Weights) -> None:
    path = published(workdir, base, now=1.5)
    champion = read_champion(workdir, "cats")

    assert champion is not None
    assert (champion.path, champion.run, champion.step, champion.published) == (path, "first", 10, 1.5)
    assert champion.weights_sha256 == weights_sha256(weights)
    assert champion.metrics == METRICS
    assert (champion.measurement, champion.dataset_digest) == ("m" * 64, "d" * 64)


def test_publishing_again_changes_nothing(workdir: LocalStorage, base: Path) -> None:
    published(workdir, base, now=1.5)
    before = contents(workdir)
    stamps = [entry.modified for entry in workdir.list("models")]
    published(workdir, base, now=99.0)

    assert contents(workdir) == before
    assert [entry.modified for entry in workdir.list("models")] == stamps, "nothing was written again"


def test_the_same_model_is_published_as_the_same_bytes_by_any_run(
    workdir: LocalStorage, base: Path, weights: Weights, tmp_path: Path
) -> None:
    other = evaluated(LocalStorage(tmp_path / "other"), base, weights, run="second")

    assert contents(other, published(other, base, "second")) == contents(workdir, published(workdir, base))


def test_other_weights_are_another_version(workdir: LocalStorage, base: Path, weights: Weights) -> None:
    first = published(workdir, base)
    evaluated(workdir, base, {name: array * np.float32(0.5) for name, array in weights.items()}, run="second")
    second = published(workdir, base, "second")

    assert first != second
    assert contents(workdir, first), "the old version stays"
    champion = read_champion(workdir, "cats")
    assert champion is not None
    assert champion.path == second


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Mortal(LocalStorage):
    """A storage whose writer dies at its n-th write."""

    def __init__(self, root: Path, lives: list[int]) -> None:
        super().__init__(root)
        self._root_folder, self._lives = root, lives

    def child(self, prefix: str) -> LocalStorage:
        return Mortal(self._root_folder / prefix, self._lives)

    def write(self, key: str, data: bytes) -> None:
        self._spend()
        super().write(key, data)

    def upload(self, key: str, path: Path) -> None:
        self._spend()
        super().upload(key, path)

    def _spend(self) -> None:
        if not self._lives:
            raise Killed
        self._lives.pop()


def test_a_killed_publish_shows_no_half_model_and_repeats_to_the_same_bytes(
    workdir: LocalStorage, base: Path, weights: Weights, tmp_path: Path
) -> None:
    path = published(workdir, base)
    whole = contents(workdir)
    root = tmp_path / "mortal"
    evaluated(LocalStorage(root), base, weights)
    for writes in range(len(whole)):
        storage = Mortal(root, [1] * writes)
        with pytest.raises(Killed):
            published(storage, base)
        survivor = LocalStorage(root)
        assert read_champion(survivor, "cats") is None
        if survivor.exists(f"{path}/COMMIT"):
            assert writes == len(whole) - 1, "only the champion is missing"
            assert contents(survivor, path) == contents(workdir, path)

    published(LocalStorage(root), base)
    assert contents(LocalStorage(root)) == whole


def test_a_half_written_folder_is_written_again(workdir: LocalStorage, base: Path) -> None:
    path = published(workdir, base)
    whole = contents(workdir)
    for key in ("COMMIT", "vae/config.json"):
        workdir.delete(f"{path}/{key}")
    workdir.write(f"{path}/unet/config.json", b"half")
    assert read_champion(workdir, "cats") is None, "not committed, so not the champion"
    published(workdir, base)

    assert contents(workdir) == whole


def test_a_published_model_that_is_damaged_is_published_again(workdir: LocalStorage, base: Path) -> None:
    """A flipped bit in its UNet once stayed, and the model was published all the same."""
    path = published(workdir, base)
    whole = contents(workdir)
    for key in (WEIGHTS, "manifest.json", "COMMIT"):
        flip(Path(workdir.url, path, key))
        with pytest.raises(DamagedFile, match=path):
            fetch(f"workdir:{path}", workdir)
        published(workdir, base)
        assert contents(workdir) == whole
    forget_checks()
    fetch(f"workdir:{path}", workdir)


def test_only_what_was_measured_is_published(workdir: LocalStorage, base: Path, weights: Weights) -> None:
    with pytest.raises(DataError, match=r"base.* 'other/model'"):
        publish(PublishConfig(), "cats", "first", "other/model", workdir, Progress(io.StringIO()))
    place = workdir.child("runs/first")
    evaluation = place.read_json("evaluation/evaluation.json")
    place.write_json("evaluation/evaluation.json", {**evaluation, "weights_sha256": "0" * 64})
    with pytest.raises(DataError, match=r"weights.* evaluate "):
        published(workdir, base)
    place.write_json("evaluation/evaluation.json", {**evaluation, "format": 1})
    with pytest.raises(DataError, match=r"format 1, .* format 2; run the evaluate step again"):
        published(workdir, base)
    place.delete("evaluation/evaluation.json")
    with pytest.raises(DataError, match=r"first.* evaluate "):
        published(workdir, base)
    assert contents(workdir) == {}


def test_the_card_draws_a_prompt_of_the_run_and_says_how_much_is_the_base(workdir: LocalStorage, base: Path) -> None:
    evaluation = workdir.read_json("runs/first/evaluation/evaluation.json")
    metrics: dict[str, float] = {}
    prompts = [
        {"prompt": text, "images": 1, "metrics": metrics} for text in ('say "cheese"', "un café, à Liège", "a cat")
    ]
    workdir.write_json("runs/first/evaluation/evaluation.json", {**evaluation, "prompts": prompts, "base_share": 0.25})
    card = workdir.read(f"{published(workdir, base)}/README.md").decode()
    assert 'pipeline("un café, à Liège").images[0]' in card
    assert "| share of the base model in the weights | 25 % |" in card.replace("\N{NO-BREAK SPACE}", " ")


def test_the_card_shows_hostile_text_as_text(workdir: LocalStorage, base: Path) -> None:
    path = published(workdir, base, description=HOSTILE, license="mit: \n# no")
    card = workdir.read(f"{path}/README.md").decode()
    _, head, body = card.split("---\n", 2)

    assert yaml.safe_load(head)["license"] == "mit: \n# no"
    before, settings = body.split("```json\n")
    assert "<script>" not in before
    assert r"\<script\>alert\(1\)\</script\> \| \`x\` \[a\]\(javascript\:b\) \# " + "\ufffd" in before
    assert json.loads(settings.split("\n```")[0]) == {"seed": 1, "train": {"steps": 10, "note": HOSTILE}}
    assert 'pipeline("what to draw")' in before, "the only prompt is no plain text"
    assert "/secret" not in card
    assert "first" not in card
    assert "| X | 75 % | 100 % (real images) |" in before
    assert "| Y | not measured: no judge | – |" in before
    assert "| prompt | images | X |" in before
    assert "| 4 | 75 % |" in before
    assert "d" * 64 in before
    assert r"| sidecar\+shuffled | 1,200 |" in before
    assert "Cut, since the text encoder reads 77 tokens: 1,100 of 1,203." in before
    assert "lists of tags" not in before


@pytest.mark.parametrize(
    ("tags", "numbers"),
    [
        (
            {"separator": ",", "shuffled": 4, "keep": 2, "dropout": 0.1},
            ["4", "2", "0.1"],
        ),
        (
            {"separator": ",", "shuffled": 0, "keep": 0, "dropout": 0.25},
            ["1", "0", "0.25"],
        ),
    ],
)
def test_the_card_says_what_was_done_to_tags(workdir: LocalStorage, base: Path, tags: Any, numbers: list[str]) -> None:
    workdir.write_json("runs/first/config.json", {"caption": {"tags": tags}})
    card = workdir.read(f"{published(workdir, base)}/README.md").decode()
    (line,) = [line for line in card.splitlines() if "lists of tags" in line]
    assert re.findall(r"\d+(?:\.\d+)?", line) == numbers
    assert ("shuffled" in line) == (tags["shuffled"] > 0)


def test_escaped_text_is_one_line_that_can_be_written() -> None:
    assert escape("plain words 123 \u00e9\u4e2d\U0001f4f7") == "plain words 123 \u00e9\u4e2d\U0001f4f7"
    assert escape("a\n\n# b\x00\udcff") == "a \\# b\ufffd\ufffd"
    assert escape("\x1b[2Ja\u202eb\u2028c\x85d\x9be") == "\ufffd\\[2Ja\ufffdb c d\ufffde"
    escape("\udcff").encode()


def test_the_command_publishes_and_tells_errors(
    workdir: LocalStorage, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["--workdir", str(workdir.local_path()), "--name", "cats", "--base-model", str(base)]

    assert main([*command, "--run", "first", "--set", "license=mit"]) == 0
    assert workdir.exists(json.loads(capfd.readouterr().out.splitlines()[-1])["published"] + "/COMMIT")
    assert main([*command, "--run", "none"]) == 65
    assert main([*command, "--run", "first", "--set", "licence=mit"]) == 78
    assert " license?" in capfd.readouterr().err
