"""What an evaluation writes and reuses, which real images it reads, and how it treats the champion."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from components.autoencoder.scratch import build_scratch
from components.dataset.format import Sample, pack
from components.dataset.prompts import NotedCaptions
from components.dataset.versions import Shard, make_dataset, read_only_dataset, write_dataset
from components.digests import sha256
from components.errors import DataError
from components.evaluate.__main__ import main
from components.evaluate.config import EvaluateConfig
from components.evaluate.evaluation import evaluate
from components.evaluate.registry import METRICS
from components.image.records import Caption, CaptionRecord, Manifest, write_captions, write_manifest
from components.model import checkpoints
from components.model.architecture import Architecture, AutoencoderArchitecture, TextArchitecture, UnetArchitecture
from components.model.champion import parse_champion, read_champion
from components.model.metric_results import FORMAT, parse_metrics
from components.progress import Progress
from components.publish.config import PublishConfig
from components.publish.publishing import publish
from components.storage.base import Storage
from components.storage.local import LocalStorage
from tests.models import commit_all

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
    "metrics": {"frechet_distance": {"side": 16}, "prompt_accuracy": {"side": 4}},
}
BASE = "workdir:models/base/tiny"
Weights = Mapping[str, NDArray[np.float32]]


@dataclass
class World:
    """A workdir in which ingest, caption, latents, index and train have been."""

    workdir: Storage
    source: Path
    weights: Weights
    dataset: str = ""

    def evaluate(self, run: str = "first", **settings: Any) -> dict[str, Any]:
        config = EvaluateConfig.parse({**SETTINGS, **settings})
        return evaluate(
            config, "squares", "source", "key", self.dataset, BASE, run, self.workdir, Progress(io.StringIO())
        )

    def value(self, name: str, run: str = "first") -> float | None:
        value: float | None = self.result(run)["metrics"][name]["value"]
        return value

    def result(self, run: str = "first") -> dict[str, Any]:
        # parse_constant: JSON has no NaN, and Python's parser would let it pass.
        text = self.workdir.read(f"runs/{run}/evaluation/evaluation.json").decode()
        return dict(json.loads(text, parse_constant=pytest.fail))

    def save(self, step: int, weights: Weights, run: str = "first", **counters: float) -> None:
        place = self.workdir.child(f"runs/{run}")
        pieces = [
            checkpoints.Piece(name, 0, {kind: array.ravel() for kind in checkpoints.KINDS})
            for name, array in weights.items()
        ]
        shapes = {name: array.shape for name, array in weights.items()}
        save = checkpoints.Save(step, {"updates": step, **counters}, 1, "training", shapes, "gang")
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
    commit_all(workdir.child("models/base/tiny"))
    made = World(workdir, tmp_path / "source", load_file(base / "unet/diffusion_pytorch_model.safetensors"))
    made.source.mkdir()
    write_source(made, lambda number, held_out: DARK if number % 2 else LIGHT)
    made.save(10, made.weights)
    return made


def write_source(world: World, caption: Callable[[int, bool], str], held_out: int = 8, count: int = 32) -> None:
    """Write images, the odd ones dark and the even ones light, and the dataset that they make."""
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
    write_captions(world.workdir.child("captions/source/mine"), "000", records, [])
    tar, idx = pack(samples)
    storage.write("shards/16x16/aa.tar", tar)
    storage.write("shards/16x16/aa.idx", idx)
    shard = Shard("shards/16x16/aa", (16, 16), count, len(tar), sha256(tar), held_out=tuple(range(held_out)))
    dataset = make_dataset("key", {}, [shard], rejected=0, caption_set="source/mine")
    write_dataset(storage, dataset)
    world.dataset = dataset.digest
    write_manifest(world.workdir, "source", Manifest(str(world.source), count, 0, ("000",), "digest"))


def test_it_writes_what_the_report_reads(world: World) -> None:
    returned = world.evaluate()
    result = world.result()

    assert result["format"] == FORMAT
    assert [row["prompt"] for row in result["prompts"]] == [DARK, LIGHT]
    assert [row["images"] for row in result["prompts"]] == [3, 3]
    assert result["size"] == [16, 16]
    for row in result["prompts"]:
        sheet = Image.open(io.BytesIO(world.workdir.read(f"runs/first/{row['sheet']}")))
        assert (sheet.size, sheet.format) == ((32, 32), "PNG"), "three tiles in two columns"
    assert result["real"] == {"train": 24, "held_out": 8, "skipped": 0}
    assert (result["better"], result["champion"], result["step"]) == (True, None, 10)
    assert result["decided_by"] == ["frechet_distance"]
    assert returned == {
        **{key: result[key] for key in ("better", "reason", "step", "weights_sha256", "metrics")},
        "reused": False,
    }


def test_every_metric_of_the_registry_is_measured_and_explains_itself(world: World) -> None:
    world.evaluate()
    metrics = parse_metrics(world.result()["metrics"])

    assert list(metrics) == list(METRICS)
    assert {(metric.status, metric.samples, metric.reason) for metric in metrics.values()} == {("measured", 6, "")}
    assert metrics["prompt_accuracy"].reference == 1.0
    distance = metrics["frechet_distance"]
    assert distance.value is not None
    assert distance.reference is not None
    assert 0 < distance.reference < distance.value, "the model is untrained"
    by_prompt = [row["metrics"]["prompt_accuracy"] for row in world.result()["prompts"]]
    assert metrics["prompt_accuracy"].value == pytest.approx(sum(by_prompt) / 2)


def test_without_prompts_it_draws_captions_of_the_dataset(world: World) -> None:
    storage = world.workdir.child("datasets/key")
    with pytest.raises(DataError, match=r"evaluate\.prompts names no prompts.*run the index step again"):
        world.evaluate(prompts=[])
    dataset = read_only_dataset(storage)
    write_dataset(storage, replace(dataset, noted_captions=NotedCaptions((LIGHT,), (LIGHT, DARK))))
    world.evaluate(prompts=[])
    assert [row["prompt"] for row in world.result()["prompts"]] == [LIGHT, DARK]
    assert world.value("prompt_accuracy") is not None


def test_it_says_how_much_of_the_base_is_in_the_weights(world: World) -> None:
    world.evaluate()
    assert world.result()["base_share"] is None, "the checkpoint is of an earlier version"
    world.save(20, world.weights, base_share=0.25)
    world.evaluate()
    assert world.result()["base_share"] == 0.25


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
    assert world.result()["metrics"]["prompt_accuracy"]["reference"] == 0.0


def test_finished_work_is_reused_and_anything_new_is_measured(world: World) -> None:
    first = world.evaluate()
    world.workdir.write("runs/first/evaluation/00.png", b"untouched")
    again = world.evaluate(promotion={"required": {"prompt_accuracy": 1.0}}, batch=4)

    assert again["reused"]
    assert world.workdir.read("runs/first/evaluation/00.png") == b"untouched"
    assert again["metrics"] == first["metrics"]
    assert not again["better"], "the decision is made anew"
    assert not world.evaluate(seed=1)["reused"], "other noise"
    assert world.value("frechet_distance") != first["metrics"]["frechet_distance"]["value"]
    world.save(20, {name: array * 0.9 for name, array in world.weights.items()})
    assert (world.evaluate(seed=1)["reused"], world.result()["step"]) == (False, 20)
    write_source(world, lambda number, held_out: DARK if number % 2 else LIGHT, held_out=6)
    assert not world.evaluate(seed=1)["reused"], "another dataset"


def test_sheets_of_prompts_that_are_gone_go_too(world: World) -> None:
    world.evaluate(prompts=[DARK, LIGHT, "a third"])
    world.evaluate()

    keys = [entry.key for entry in world.workdir.list("runs/first/evaluation")]
    assert keys == [f"runs/first/evaluation/{name}" for name in ("00.png", "01.png", "evaluation.json")]


def test_an_evaluation_of_an_older_format_is_measured_anew(world: World) -> None:
    world.evaluate()
    older = {key: value for key, value in world.result().items() if key != "format"}
    world.workdir.write_json("runs/first/evaluation/evaluation.json", {**older, "metrics": {"frechet_distance": 1.0}})

    assert not world.evaluate()["reused"]


def test_without_captions_like_the_prompts_accuracy_is_not_invented(world: World) -> None:
    write_source(world, lambda number, held_out: f"square number {number}")
    returned = world.evaluate()
    accuracy = returned["metrics"]["prompt_accuracy"]

    assert (accuracy["status"], accuracy["value"], accuracy["reference"]) == ("not run", None, None)
    assert "2 of 2 prompts" in accuracy["reason"]
    assert [row["metrics"] for row in world.result()["prompts"]] == [{}, {}]
    assert returned["better"], "promoted on the Fréchet distance, which was measured"
    assert not world.evaluate(promotion={"required": {"prompt_accuracy": 0.5}})["better"]


def test_without_held_out_images_there_is_no_distance(world: World) -> None:
    write_source(world, lambda number, held_out: DARK if number % 2 else LIGHT, held_out=0)
    returned = world.evaluate()
    metrics = returned["metrics"]

    assert (metrics["frechet_distance"]["value"], metrics["frechet_distance"]["reference"]) == (None, None)
    assert (metrics["prompt_accuracy"]["status"], metrics["prompt_accuracy"]["reference"]) == ("measured", None)
    assert all(metrics[name]["reason"] for name in ("frechet_distance", "prompt_accuracy"))
    assert not returned["better"]
    assert "promotion.metric" in returned["reason"]


def test_images_that_changed_or_vanished_are_skipped_and_counted(world: World) -> None:
    (world.source / "0.png").unlink()  # held out
    (world.source / "20.png").write_bytes((world.source / "22.png").read_bytes())
    (world.source / "21.png").write_bytes(b"")
    world.evaluate()

    assert world.result()["real"] == {"train": 22, "held_out": 7, "skipped": 3}


def test_at_most_real_images_of_each_side_are_read(world: World) -> None:
    world.evaluate(real_images=5)
    assert world.result()["real"] == {"train": 5, "held_out": 5, "skipped": 0}


def read_captions_in(world: World, chunks: int) -> None:
    storage = world.workdir.child("datasets/key")
    write_dataset(storage, replace(read_only_dataset(storage), encoding={"text_chunks": chunks}))


def test_each_model_draws_prompts_that_it_reads_as_the_captions_of_its_training(world: World) -> None:
    """The text encoder reads six tokens at once, so the seventh counts only if there is a second chunk."""
    same = "dark dark dark dark dark dark"

    def drawn(chunks: int, last: str) -> bytes:
        read_captions_in(world, chunks)
        assert not world.evaluate(prompts=[f"{same} {last}"])["reused"]
        return world.workdir.read("runs/first/evaluation/00.png")

    assert drawn(1, "dark") == drawn(1, "light")
    assert drawn(2, "light") != drawn(2, "dark")
    assert world.result()["text"] == {"chunks": 2, "clip_skip": 0}
    world.publish()
    world.evaluate(prompts=[f"{same} light"], seed=3)
    as_trained = world.value("frechet_distance")
    world.save(10, {name: array * 0.9 for name, array in world.weights.items()}, run="second")
    read_captions_in(world, 1)
    world.evaluate("second", prompts=[f"{same} light"], seed=3)
    champion = world.result("second")["champion"]
    assert champion["metrics"]["frechet_distance"]["value"] == as_trained, "whatever the new model reads"


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
    world.workdir.delete_tree("datasets/key")
    with pytest.raises(DataError, match="datasets/key"):
        world.evaluate()


def test_what_was_trained_on_is_measured_and_published_though_a_newer_version_holds_out_others(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = world.dataset
    write_source(world, lambda number, held_out: DARK if number % 2 else LIGHT, held_out=3)
    newer, world.dataset = world.dataset, trained
    storage = world.workdir.child("datasets/key")
    assert newer != trained
    assert read_only_dataset(storage).digest == newer

    world.evaluate()
    result = world.result()
    assert result["dataset_digest"] == trained
    assert result["real"] == {"train": 24, "held_out": 8, "skipped": 0}, "those held out in training, not the newest"
    version = world.publish()
    champion = read_champion(world.workdir, "squares")
    assert champion is not None
    assert champion.dataset_digest == trained
    card = world.workdir.read(f"models/squares/{version}/README.md").decode()
    assert trained in card
    assert newer not in card

    world.workdir.write_json("runs/first/training.json", {"dataset": trained})
    command = ["--workdir", str(world.workdir.local_path()), "--name", "squares", "--source-id", "source"]
    command += ["--encoding-key", "key", "--base-model", BASE, "--run", "first"]
    assert main([*command, *(f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items())]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["reused"] is True
    assert world.result()["dataset_digest"] == trained


def test_the_champion_is_not_better_than_itself(world: World) -> None:
    assert world.evaluate()["better"]
    version = world.publish()
    again = world.evaluate()

    assert not again["better"]
    assert version in again["reason"]
    assert world.result()["champion"]["version"] == version
    world.workdir.delete(f"models/squares/{version}/COMMIT")
    assert world.evaluate()["better"], "a champion whose folder is gone is no champion"


def test_a_champion_of_an_older_format_is_rejected_with_what_to_do(world: World) -> None:
    world.evaluate()
    world.publish()
    key = "models/squares/champion.json"
    champion = world.workdir.read_json(key)
    world.workdir.write_json(key, {**champion, "format": 1})

    with pytest.raises(DataError, match=r"champion.json .* format 1, .* format 2; delete it.* run first"):
        world.evaluate()


def test_a_champion_that_was_measured_otherwise_draws_again(world: World) -> None:
    world.evaluate()
    world.publish()
    published = read_champion(world.workdir, "squares")
    assert published is not None

    world.evaluate()
    same = world.value("frechet_distance")
    assert published.metrics["frechet_distance"].value == same
    world.save(10, {name: array * 0.9 for name, array in world.weights.items()}, run="second")
    world.evaluate("second")
    assert parse_champion(world.result("second")["champion"]) == published, "measured alike: no need to draw"

    world.evaluate("second", seed=3)
    measured = world.result("second")["champion"]
    world.evaluate("first", seed=3)
    assert measured["metrics"]["frechet_distance"]["value"] == world.value("frechet_distance") != same

    # The earlier evaluation knows that number already, so the published model is not needed for it.
    world.workdir.delete(f"{published.path}/unet/diffusion_pytorch_model.safetensors")
    assert world.evaluate("second", seed=3)["reused"]
    assert world.result("second")["champion"] == measured


def test_the_command_evaluates_and_tells_errors(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--workdir", str(world.workdir.local_path()), "--name", "squares", "--source-id", "source"]
    command += ["--encoding-key", "key", "--base-model", BASE]
    settings = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]

    assert main([*command, "--run", "first", *settings]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["better"] is True
    assert main([*command, "--run", "none", *settings]) == 65
    assert main([*command, "--run", "first", "--set", "steps=0"]) == 78
    assert "error: steps: 0 " in capfd.readouterr().err
