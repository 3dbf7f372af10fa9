"""The numbers mean what they say, real images stay on their side, and only a better model is called better."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from components.autoencoder.scratch import build_scratch
from components.dataset.format import Sample, pack
from components.dataset.versions import Shard, make_dataset, write_dataset
from components.digests import sha256
from components.errors import ConfigError, DataError
from components.evaluate.__main__ import main
from components.evaluate.config import EvaluateConfig
from components.evaluate.evaluation import evaluate
from components.evaluate.frechet import frechet_distance
from components.evaluate.judge import Judge, cannot_judge
from components.evaluate.promotion import compare
from components.evaluate.seeing import Eye
from components.image.records import Caption, CaptionRecord, Manifest, write_captions, write_manifest
from components.model import checkpoints
from components.model.architecture import Architecture, AutoencoderArchitecture, TextArchitecture, UnetArchitecture
from components.model.champion import read_champion
from components.progress import Progress
from components.publish.config import PublishConfig
from components.publish.publishing import publish
from components.storage.base import Storage
from components.storage.local import LocalStorage

DARK, LIGHT = "a dark square", "a light <b>square</b>\nindeed"
TINY = Architecture(
    resolution=16,
    autoencoder=AutoencoderArchitecture(channels=(8, 8), norm_groups=4),
    text=TextArchitecture(vocabulary=600, max_tokens=8, hidden=16, layers=1, heads=2),
    unet=UnetArchitecture(channels=(8, 16), norm_groups=4, attention_heads=2, cross_attention=(False, True)),
)
SETTINGS: dict[str, Any] = {
    "prompts": [DARK, LIGHT],
    "images_per_prompt": 3,
    "steps": 2,
    "guidance": 2.0,
    "sheet_columns": 2,
    "feature_side": 16,
    "judge_side": 4,
}
BASE = "workdir:models/base/tiny"
Weights = Mapping[str, NDArray[np.float32]]


@dataclass
class World:
    """A workdir in which ingest, caption, latents, index and train have been."""

    workdir: Storage
    source: Path
    weights: Weights

    def evaluate(self, run: str = "first", **settings: Any) -> dict[str, Any]:
        config = EvaluateConfig.parse({**SETTINGS, **settings})
        return evaluate(config, "squares", "source", "key", BASE, run, self.workdir, Progress(io.StringIO()))

    def result(self, run: str = "first") -> dict[str, Any]:
        # parse_constant: JSON has no NaN, and Python's parser would let it pass.
        text = self.workdir.read(f"runs/{run}/evaluation/evaluation.json").decode()
        return dict(json.loads(text, parse_constant=pytest.fail))

    def save(self, step: int, weights: Weights, run: str = "first") -> None:
        place = self.workdir.child(f"runs/{run}")
        pieces = [
            checkpoints.Piece(name, 0, {kind: array.ravel() for kind in checkpoints.KINDS})
            for name, array in weights.items()
        ]
        shapes = {name: array.shape for name, array in weights.items()}
        save = checkpoints.Save(step, {"updates": step}, 1, "training", shapes, "gang")
        checkpoints.write_part(place, save, 0, pieces)
        assert checkpoints.commit(place, save)

    def publish(self, run: str = "first") -> str:
        done = publish(PublishConfig(), "squares", run, BASE, self.workdir, Progress(io.StringIO()), lambda: 1.0)
        return str(done["version"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, [DARK, LIGHT], seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path, base: Path) -> World:
    from safetensors.numpy import load_file

    workdir = LocalStorage(tmp_path / "work")
    for path in base.rglob("*"):
        if path.is_file():
            workdir.upload(f"models/base/tiny/{path.relative_to(base).as_posix()}", path)
    workdir.write("models/base/tiny/COMMIT", b"")
    made = World(workdir, tmp_path / "source", load_file(base / "unet/diffusion_pytorch_model.safetensors"))
    made.source.mkdir()
    write_source(made, lambda number, held_out: DARK if number % 2 else LIGHT)
    made.save(10, made.weights)
    return made


def write_source(world: World, caption: Callable[[int, bool], str], held_out: int = 8, count: int = 32) -> None:
    """Write pictures, the odd ones dark and the even ones light, and the dataset that they make."""
    random = np.random.default_rng(5)
    records, samples = [], []
    for number in range(count):
        gray = (40 if number % 2 else 215) + random.integers(-30, 30, (16, 16, 1))
        buffer = io.BytesIO()
        Image.fromarray(np.repeat(gray.astype(np.uint8), 3, axis=2)).save(buffer, "PNG")
        data, name = buffer.getvalue(), f"{number}.png"
        (world.source / name).write_bytes(data)
        text = caption(number, number < held_out)
        captions = (Caption(text, "sidecar:x"),)
        records.append(CaptionRecord(sha256(data), name, len(data), captions, "1", 16, 16))
        zeros = np.zeros((8, 8, 8), np.float16)
        samples.append(
            Sample(sha256(data), zeros, zeros[0], {"caption": text, "caption_digest": sha256(text.encode())})
        )
    storage = world.workdir.child("datasets/key")
    write_captions(storage, "000", records, [])
    tar, idx = pack(samples)
    storage.write("shards/16x16/aa.tar", tar)
    storage.write("shards/16x16/aa.idx", idx)
    shard = Shard("shards/16x16/aa", (16, 16), count, len(tar), sha256(tar), held_out=tuple(range(held_out)))
    write_dataset(storage, make_dataset("key", {}, [shard], rejected=0))
    write_manifest(world.workdir, "source", Manifest(str(world.source), count, 0, ("000",), "digest"))


def test_it_writes_what_the_report_reads(world: World) -> None:
    returned = world.evaluate()
    result = world.result()

    assert [row["prompt"] for row in result["prompts"]] == [DARK, LIGHT]
    assert [row["images"] for row in result["prompts"]] == [3, 3]
    assert sum(row["correct"] for row in result["prompts"]) == round(result["metrics"]["prompt_accuracy"] * 6)
    assert result["size"] == [16, 16]
    for row in result["prompts"]:
        sheet = Image.open(io.BytesIO(world.workdir.read(f"runs/first/{row['sheet']}")))
        assert (sheet.size, sheet.format) == ((32, 32), "PNG"), "three tiles in two columns"
    assert result["metrics"]["judge_accuracy"] == 1.0
    assert result["metrics"]["generated"] == 6
    assert 0 < result["metrics"]["frechet_reference"] < result["metrics"]["frechet_distance"], "the model is untrained"
    assert result["unknown"] == {}
    assert result["real"] == {"train": 24, "held_out": 8, "skipped": 0}
    assert (result["better"], result["champion"], result["step"]) == (True, None, 10)
    assert returned == {
        **result["metrics"],
        **{key: result[key] for key in ("better", "reason", "step", "weights_sha256")},
        "reused": False,
    }


def test_the_same_evaluation_gives_the_same_bytes(world: World) -> None:
    def written() -> dict[str, bytes]:
        return {entry.key: world.workdir.read(entry.key) for entry in world.workdir.list("runs/first/evaluation")}

    world.evaluate()
    first = written()
    world.workdir.delete_tree("runs/first/evaluation")
    world.evaluate()

    assert written() == first


def test_the_judge_learns_from_training_images_only(world: World) -> None:
    swapped = {DARK: LIGHT, LIGHT: DARK}
    write_source(
        world,
        lambda number, held_out: (swapped if held_out else dict(zip(swapped, swapped, strict=True)))[
            DARK if number % 2 else LIGHT
        ],
    )

    world.evaluate()

    # A judge that had seen the held-out images, whose captions are all wrong, would not be wrong on all of them.
    assert world.result()["metrics"]["judge_accuracy"] == 0.0


def test_finished_work_is_reused_and_anything_new_is_measured(world: World) -> None:
    first = world.evaluate()
    world.workdir.write("runs/first/evaluation/00.png", b"untouched")
    again = world.evaluate(min_prompt_accuracy=1.0, batch=4)

    assert again["reused"]
    assert world.workdir.read("runs/first/evaluation/00.png") == b"untouched"
    assert {key: again[key] for key in ("frechet_distance", "prompt_accuracy")} == {
        key: first[key] for key in ("frechet_distance", "prompt_accuracy")
    }
    assert not again["better"], "the verdict is made anew"
    assert not world.evaluate(seed=1)["reused"], "other noise"
    assert world.result()["metrics"]["frechet_distance"] != first["frechet_distance"]
    world.save(20, {name: array * 0.9 for name, array in world.weights.items()})
    assert (world.evaluate(seed=1)["reused"], world.result()["step"]) == (False, 20)
    write_source(world, lambda number, held_out: DARK if number % 2 else LIGHT, held_out=6)
    assert not world.evaluate(seed=1)["reused"], "another dataset"


def test_sheets_of_prompts_that_are_gone_go_too(world: World) -> None:
    world.evaluate(prompts=[DARK, LIGHT, "a third"])
    world.evaluate()

    keys = [entry.key for entry in world.workdir.list("runs/first/evaluation")]
    assert keys == [f"runs/first/evaluation/{name}" for name in ("00.png", "01.png", "evaluation.json")]


def test_without_captions_like_the_prompts_accuracy_is_unknown_not_invented(world: World) -> None:
    write_source(world, lambda number, held_out: f"square number {number}")
    returned = world.evaluate()
    result = world.result()

    assert (returned["prompt_accuracy"], returned["judge_accuracy"]) == (None, None)
    assert [row["correct"] for row in result["prompts"]] == [None, None]
    assert "2 of 2 prompts" in result["unknown"]["prompt_accuracy"]
    assert returned["better"], "promoted on the Fréchet distance, which is known"
    assert not world.evaluate(min_prompt_accuracy=0.5)["better"]


def test_without_held_out_images_there_is_no_distance(world: World) -> None:
    write_source(world, lambda number, held_out: DARK if number % 2 else LIGHT, held_out=0)
    returned = world.evaluate()

    unknown = ("frechet_distance", "frechet_reference", "judge_accuracy")
    assert [returned[name] for name in unknown] == [None] * 3
    assert sorted(world.result()["unknown"]) == sorted(unknown)
    assert not returned["better"]
    assert "promote_on" in returned["reason"]


def test_images_that_changed_or_vanished_are_skipped_and_counted(world: World) -> None:
    (world.source / "0.png").unlink()  # held out
    (world.source / "20.png").write_bytes((world.source / "22.png").read_bytes())
    (world.source / "21.png").write_bytes(b"")
    world.evaluate()

    assert world.result()["real"] == {"train": 22, "held_out": 7, "skipped": 3}


def test_at_most_real_images_of_each_side_are_read(world: World) -> None:
    world.evaluate(real_images=5, judge_images=1)
    assert world.result()["real"] == {"train": 5, "held_out": 5, "skipped": 0}


def test_a_corrupt_checkpoint_is_passed_over(world: World) -> None:
    world.save(20, {name: array * 0.9 for name, array in world.weights.items()})
    part = f"runs/first/{checkpoints.folder(20)}/rank-00000.safetensors"
    data = bytearray(world.workdir.read(part))
    data[-1] ^= 1
    world.workdir.write(part, bytes(data))

    assert world.evaluate()["step"] == 10


def test_what_cannot_be_evaluated_says_why(world: World) -> None:
    with pytest.raises(DataError, match="runs/none"):
        world.evaluate(run="none")
    world.save(20, {name: array * np.nan for name, array in world.weights.items()})
    with pytest.raises(DataError, match="not finite"):
        world.evaluate()
    world.save(30, dict(list(world.weights.items())[1:]))
    with pytest.raises(DataError, match="runs/first/checkpoints/step-000000030"):
        world.evaluate()
    world.workdir.delete("datasets/key/dataset.json")
    with pytest.raises(DataError, match="datasets/key"):
        world.evaluate()


def test_the_champion_is_not_better_than_itself(world: World) -> None:
    assert world.evaluate()["better"]
    version = world.publish()
    again = world.evaluate()

    assert not again["better"]
    assert version in again["reason"]
    assert world.result()["champion"]["version"] == version
    world.workdir.delete(f"models/squares/{version}/COMMIT")
    assert world.evaluate()["better"], "a champion whose folder is gone is no champion"


def test_a_champion_that_was_measured_otherwise_draws_again(world: World) -> None:
    world.evaluate()
    world.publish()
    published = read_champion(world.workdir, "squares")
    assert published is not None

    same_numbers = world.evaluate()["frechet_distance"]
    assert published.metrics["frechet_distance"] == same_numbers
    world.save(10, {name: array * 0.9 for name, array in world.weights.items()}, run="second")
    world.evaluate("second")
    assert world.result("second")["champion"]["metrics"] == published.metrics, "measured alike: no need to draw"

    world.evaluate("second", seed=3)
    measured = world.result("second")["champion"]
    alone = world.evaluate("first", seed=3)
    assert measured["metrics"]["frechet_distance"] == alone["frechet_distance"] != same_numbers

    # The earlier evaluation knows that number already, so the published model is not needed for it.
    world.workdir.delete(f"{published.path}/unet/diffusion_pytorch_model.safetensors")
    assert world.evaluate("second", seed=3)["reused"]
    assert world.result("second")["champion"] == measured


METRICS = {"frechet_distance": 2.0, "prompt_accuracy": 0.9}


@pytest.mark.parametrize(
    ("settings", "champion", "better", "reason"),
    [
        ({}, None, True, ("distance", "2")),
        ({}, {"frechet_distance": 2.5}, True, ("distance", "2", "2.5", "lower")),
        ({}, {"frechet_distance": 1.5}, False, ("distance", "2", "1.5", "lower")),
        ({}, {"frechet_distance": 2.0}, False, ("distance", "2")),
        ({}, {"frechet_distance": 2.0000001}, True, ("distance", "2", "2.0000001", "lower")),
        ({}, {"frechet_distance": None}, True, ("distance", "2")),
        ({"promote_on": "prompt_accuracy"}, {"prompt_accuracy": 0.8}, True, ("accuracy", "0.9", "0.8", "higher")),
        ({"promote_on": "prompt_accuracy"}, {"prompt_accuracy": 0.95}, False, ("accuracy", "0.9", "0.95", "higher")),
        ({"min_prompt_accuracy": 0.95}, None, False, ("0.9", "0.95", "min_prompt_accuracy")),
        ({"min_prompt_accuracy": 0.9}, None, True, ("distance", "2")),
    ],
)
def test_promotion(
    settings: dict[str, Any], champion: dict[str, Any] | None, better: bool, reason: tuple[str, ...]
) -> None:
    config = EvaluateConfig.parse({"prompts": ["a", "b"], **settings})
    verdict = compare(config, METRICS, champion)

    assert verdict.better is better, verdict.reason
    assert all(part in verdict.reason for part in reason)


def test_frechet_distance_is_that_of_gaussians() -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal((50, 6)) @ random.standard_normal((6, 6))
    b = random.standard_normal((40, 6)) @ random.standard_normal((6, 6)) + 1
    shift, first, second = a.mean(0) - b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = shift @ shift + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)

    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(6 * 9)
    few = random.standard_normal((3, 64))
    assert frechet_distance(few, few * 2) == pytest.approx(
        np.trace(np.cov(few, rowvar=False)) + (few.mean(0) ** 2).sum()
    )


@pytest.fixture(scope="module")
def digits() -> tuple[list[Image.Image], list[str]]:
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))  # the file is sorted by writer
    images = [
        Image.fromarray((grid * 15.9).astype(np.uint8)).resize((32, 32)).convert("RGB") for grid in found.images[order]
    ]
    return images, [f"digit {number}" for number in found.target[order]]


def test_features_tell_worse_pictures_from_real_ones(digits: tuple[list[Image.Image], list[str]]) -> None:
    images, captions = digits
    random = np.random.default_rng(0)
    eye = Eye(32, 4)

    def distance(drawn: list[Image.Image]) -> float:
        return frechet_distance(eye.look(drawn).features, held_out)

    def spoiled(change: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
        return distance([Image.fromarray(change(np.asarray(image)).astype(np.uint8)) for image in images[:160]])

    held_out = eye.look(images[-297:]).features
    reference = distance(images[:160])
    assert spoiled(lambda pixels: np.clip(pixels + random.normal(0, 40, pixels.shape), 0, 255)) > 2 * reference
    assert spoiled(lambda pixels: np.concatenate([pixels[:, 16:], pixels[:, :16]], axis=1)) > 2 * reference
    assert spoiled(lambda pixels: pixels * 0) > 10 * reference
    sevens = [image for image, caption in zip(images, captions, strict=True) if caption == "digit 7"]
    assert distance(sevens[:160]) > 3 * reference, "always the same digit"


def test_the_judge_reads_real_digits(digits: tuple[list[Image.Image], list[str]]) -> None:
    images, captions = digits
    pixels = Eye(32, EvaluateConfig().judge_side).look(images).pixels
    judge = Judge(None, EvaluateConfig().judge_c, pixels[:1500], captions[:1500])
    read = judge.read(pixels[1500:])

    assert np.mean([found == caption for found, caption in zip(read, captions[1500:], strict=True)]) > 0.95


def test_a_judge_needs_images_of_every_prompt() -> None:
    config = EvaluateConfig.parse({"prompts": ["a", "b"], "judge_images": 2})

    assert cannot_judge(config, ["a", "b", "a", "b", "c"]) is None
    assert "1 of 2 prompts" in str(cannot_judge(config, ["a", "b", "a"]))
    assert "more prompts" in str(cannot_judge(EvaluateConfig.parse({"prompts": ["a"]}), ["a"] * 9))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompts": ["a", "a"]}, "prompts"),
        ({"prompts": ["a"], "promote_on": "prompt_accuracy"}, "two prompts"),
        ({"prompts": ["a"], "min_prompt_accuracy": 0.5}, "two prompts"),
        ({"promt": ["a"]}, "prompts?"),
        ({"judge_gamma": 0}, "judge_gamma: 0 "),
    ],
)
def test_settings_that_contradict_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        EvaluateConfig.parse(values)
    assert said in str(error.value)


def test_the_command_evaluates_and_tells_errors(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--workdir", str(world.workdir.local_path()), "--name", "squares", "--source-id", "source"]
    command += ["--encoding-key", "key", "--base-model", BASE]
    settings = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]

    assert main([*command, "--run", "first", *settings]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["better"] is True
    assert main([*command, "--run", "none", *settings]) == 65
    assert main([*command, "--run", "first", "--set", "steps=0"]) == 78
    assert "error: steps: 0 " in capfd.readouterr().err
