"""The autoencoder step: a base model as it is, or one from scratch that is the same each time."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from components.autoencoder.__main__ import main
from components.autoencoder.base_model import TrainingData, base_key, ensure_base, select_images
from components.autoencoder.config import AutoencoderTraining, ModelConfig
from components.autoencoder.scratch import build_scratch
from components.autoencoder.training import as_input, batch_numbers, normalise_latents, rate, train_autoencoder
from components.dataset.versions import is_held_out
from components.digests import sha256
from components.errors import ConfigError, DataError
from components.image.records import (
    Caption,
    CaptionRecord,
    Manifest,
    Rejection,
    clean_rejections_key,
    write_captions,
    write_manifest,
    write_rejections,
)
from components.model.architecture import Architecture
from components.model.locations import check_parts, fetch
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage

SOURCE = "0123456789abcdef"
SET = f"{SOURCE}/mine"
TINY: dict[str, Any] = {
    "resolution": 16,
    "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
    "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 600},
    "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
}
CPU = torch.device("cpu")
QUIET = Progress(io.StringIO())


def settings(**training: Any) -> dict[str, Any]:
    fast = {"steps": 2, "warmup_steps": 1, "batch_size": 4, "device": "cpu", "threads": 1}
    return {"scratch": {"architecture": TINY, "training": {**fast, **training}}}


def smooth(number: int) -> NDArray[np.uint8]:
    """An image of a few colours that flow into each other, ``[16, 16, 3]``."""
    corners = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(corners).resize((16, 16), Image.Resampling.BILINEAR))


class Workbench:
    """A source and the workdir that knows it, with the records of ingest and caption made by hand."""

    def __init__(self, root: Path, count: int = 10) -> None:
        self.source = root / "images"
        self.source.mkdir(parents=True)
        self.root = root / "work"
        self.workdir: Storage = open_storage(str(self.root))
        self.records: list[CaptionRecord] = []
        self.ingest()
        for number in range(count):
            stream = io.BytesIO()
            Image.fromarray(smooth(number)).save(stream, format="PNG")
            self.add(f"{number}.png", stream.getvalue(), f"picture {number % 3}")

    def add(self, name: str, data: bytes, caption: str) -> None:
        (self.source / name).write_bytes(data)
        captions = (Caption(caption, "folder+prefix"),)
        self.records.append(CaptionRecord(sha256(data), name, len(data), captions, "v", 16, 16))
        self.ingest()

    def ingest(self) -> None:
        """Spread the records over two groups."""
        for group, records in (("000", self.records[::2]), ("001", self.records[1::2])):
            write_captions(self.workdir.child(f"captions/{SET}"), group, records, [])
        write_manifest(self.workdir, SOURCE, Manifest(str(self.source), len(self.records), 0, ("000", "001"), "d"))

    def ensure(self, config: ModelConfig | None = None, seed: int = 1, held_out: float = 0.0) -> dict[str, Any]:
        data = TrainingData(SOURCE, SET, SET, held_out)
        return ensure_base(config or ModelConfig.parse(settings()), seed, data, self.workdir, QUIET)

    def files(self, result: dict[str, Any]) -> dict[str, bytes]:
        folder = self.workdir.child(str(result["base_model"]).removeprefix("workdir:"))
        return {entry.key: folder.read(entry.key) for entry in folder.list()}


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_scratch_model_is_a_pipeline_that_draws(workbench: Workbench) -> None:
    result = workbench.ensure()
    assert result["trained"] is True
    assert result["seconds"] >= 0
    folder = fetch(result["base_model"], workbench.workdir)
    check_parts(folder, "base")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("picture 1", num_inference_steps=2, height=16, width=16).images[0]
    assert image.size == (16, 16)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.tokenizer.tokenize("picture 1") == ["picture</w>", "1</w>"]


def test_second_run_does_nothing(workbench: Workbench) -> None:
    first = workbench.ensure()
    before = [tuple(entry) for entry in workbench.workdir.list("models")]
    second = workbench.ensure()
    assert (second["base_model"], second["trained"]) == (first["base_model"], False)
    assert [tuple(entry) for entry in workbench.workdir.list("models")] == before


def test_two_workdirs_get_the_same_bytes(workbench: Workbench, tmp_path: Path) -> None:
    torch.manual_seed(5)  # the state of the global generator does not matter
    other = Workbench(tmp_path / "other")
    other.records.reverse()
    other.ingest()
    assert other.files(other.ensure()) == workbench.files(workbench.ensure())


def test_killed_before_the_commit_ends_with_the_same_bytes(workbench: Workbench) -> None:
    result = workbench.ensure()
    expected = workbench.files(result)
    name = result["base_model"].removeprefix("workdir:")
    workbench.workdir.delete(f"{name}/COMMIT")
    workbench.workdir.delete(f"{name}/model_index.json")
    workbench.workdir.write(f"{name}/vae/config.json", b"half")
    assert workbench.ensure() | {"seconds": 0} == result | {"seconds": 0}
    assert workbench.files(result) == expected


def test_commit_lists_every_file(workbench: Workbench) -> None:
    files = workbench.files(workbench.ensure())
    manifest = files.pop("manifest.json")
    assert files.pop("COMMIT").decode() == sha256(manifest)
    assert json.loads(manifest)["sha256"] == {name: sha256(data) for name, data in files.items()}


def test_new_images_keep_the_autoencoder(workbench: Workbench) -> None:
    first = workbench.ensure()
    workbench.add("new.png", (workbench.source / "0.png").read_bytes() + b"\0", "new")
    second = workbench.ensure()
    assert (second["base_model"], second["trained"]) == (first["base_model"], False)


def test_settings_seed_source_texts_and_held_out_share_make_another_model() -> None:
    config = ModelConfig.parse(settings())
    keys = {
        base_key(config, 1, TrainingData(SOURCE, SET, {"prefix": ""}, 0.1), "photos"),
        base_key(ModelConfig.parse(settings(steps=3)), 1, TrainingData(SOURCE, SET, {"prefix": ""}, 0.1), "photos"),
        base_key(config, 2, TrainingData(SOURCE, SET, {"prefix": ""}, 0.1), "photos"),
        base_key(config, 1, TrainingData(SOURCE, SET, {"prefix": ""}, 0.1), "others"),
        base_key(config, 1, TrainingData(SOURCE, SET, {"prefix": ""}, 0.2), "photos"),
        base_key(config, 1, TrainingData(SOURCE, SET, {"prefix": "art of "}, 0.1), "photos"),
    }
    assert len(keys) == 6
    one, other = (TrainingData(name, f"{name}/{name}", {"prefix": ""}, 0.1) for name in ("a", "b"))
    keys = {base_key(config, 1, data, "photos") for data in (one, other)}
    assert len(keys) == 1, "another threshold, or another setting of ingest, encodes nothing again"


def test_held_out_images_are_not_trained_on(workbench: Workbench) -> None:
    share = 0.4
    held_out = [record for record in workbench.records if is_held_out(record.sha256, share)]
    assert 0 < len(held_out) < len(workbench.records)
    expected = workbench.files(workbench.ensure(held_out=share))
    for record in held_out:
        (workbench.source / record.name).unlink()
    shutil.rmtree(workbench.root / "models")
    assert workbench.files(workbench.ensure(held_out=share)) == expected


def test_images_that_changed_since_they_were_captioned_are_skipped(workbench: Workbench) -> None:
    expected = workbench.files(workbench.ensure())
    shutil.rmtree(workbench.root / "models")
    workbench.add("bad.png", b"no image", "picture 1")
    assert workbench.files(workbench.ensure()) == expected


def tokenizer(workbench: Workbench, **settings: Any) -> Any:
    folder = fetch(workbench.ensure(**settings)["base_model"], workbench.workdir)
    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True).tokenizer


def test_captions_of_any_kind_teach_the_tokenizer(workbench: Workbench) -> None:
    data = (workbench.source / "0.png").read_bytes()
    for number, caption in enumerate(["", "x" * 2000, "🎉 <b>", "\udcff", "art of a meadow, impressive"]):
        workbench.add(f"odd-{number}.png", data + bytes(number + 1), caption)
    learnt = tokenizer(workbench)
    assert learnt.tokenize("art of a picture, impressive") == [
        f"{word}</w>" for word in ("art", "of", "a", "picture", ",", "impressive")
    ]
    assert learnt.decode(learnt("żółw")["input_ids"], skip_special_tokens=True).strip() == "żółw", "any word is spelt"


def test_only_captions_that_are_trained_on_teach_the_tokenizer(workbench: Workbench) -> None:
    data = (workbench.source / "0.png").read_bytes()
    for number in range(20):
        workbench.add(f"new-{number}.png", data + bytes(number + 1), "rejected" if number % 2 else "magnificent")
    captions = workbench.workdir.child(f"captions/{SET}")
    rejections = [
        Rejection(record.name, "clean", "blurred", "", record.sha256)
        for record in workbench.records
        if record.captions[0].text == "rejected"
    ]
    for group in ("000", "001"):
        write_rejections(captions, clean_rejections_key(group), rejections)
    learnt = tokenizer(workbench, held_out=0.3)
    assert learnt.tokenize("magnificent") == ["magnificent</w>"]
    assert len(learnt.tokenize("rejected")) > 1


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_learn_from_is_rejected(tmp_path: Path, count: int) -> None:
    workbench = Workbench(tmp_path, count)
    for record in workbench.records:
        (workbench.source / record.name).write_bytes(b"")
    with pytest.raises(DataError, match="no image"):
        workbench.ensure()


def test_source_must_have_been_ingested(tmp_path: Path) -> None:
    data = TrainingData(SOURCE, SET, SET, 0.0)
    with pytest.raises(DataError, match="ingest"):
        ensure_base(ModelConfig.parse(settings()), 1, data, open_storage(str(tmp_path)), QUIET)


def test_images_are_a_choice_by_digest(workbench: Workbench) -> None:
    chosen = select_images(workbench.records, most=4)
    assert chosen == sorted(workbench.records, key=lambda record: record.sha256)[:4]
    assert select_images(workbench.records[::-1], most=4) == chosen


def test_base_model_is_returned_untouched(workbench: Workbench, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_scratch(Architecture.parse(TINY), [], seed=0).save_pretrained(base)
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    result = workbench.ensure(ModelConfig(base=str(base)))
    assert (result["base_model"], result["trained"]) == (str(base), False)
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before
    assert not list(workbench.workdir.list("models"))


def test_base_without_an_autoencoder_is_rejected(workbench: Workbench, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_scratch(Architecture.parse(TINY), [], seed=0).save_pretrained(base)
    shutil.rmtree(base / "vae")
    with pytest.raises(ConfigError, match=r"\bvae\b"):
        workbench.ensure(ModelConfig(base=str(base)))
    with pytest.raises(ConfigError, match=r"\bhub\b"):
        workbench.ensure(ModelConfig(base=str(base), revision="main"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"revision": "main"}, r"\bbase\b"),
        (settings(l1_weight=0, mse_weight=0), "both 0"),
        (settings(steps=5, warmup_steps=5), r"must be below scratch\.training\.steps \(5\)"),
        (settings(stepz=5), r"did you mean scratch\.training\.steps"),
        (settings(learning_rate=-1), "learning_rate"),
    ],
)
def test_settings_that_make_no_sense_are_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.parse(values)


def test_training_brings_the_images_back() -> None:
    images = np.stack([smooth(number) for number in range(24)])
    config = AutoencoderTraining(steps=120, warmup_steps=5, batch_size=8, learning_rate=1e-2, device="cpu")
    wider = {"channels": [8, 8], "norm_groups": 2, "layers_per_block": 0}
    vae = build_scratch(Architecture.parse({**TINY, "autoencoder": wider}), [], seed=0).vae

    def error() -> float:
        with torch.no_grad():
            pixels = as_input(images, CPU)
            return float((vae.decode(vae.encode(pixels).latent_dist.mean).sample - pixels).abs().mean())

    before = error()
    loss = train_autoencoder(vae, images, config, 0, CPU, QUIET)
    assert error() < 0.5 * before
    assert 0 < loss < before
    assert not vae.training


def test_latents_are_normalised_and_images_stay_the_same() -> None:
    images = np.stack([smooth(number) for number in range(30)])
    vae = build_scratch(Architecture.parse(TINY), [], seed=0).vae.eval()
    pixels = as_input(images, CPU)
    with torch.no_grad():
        vae.quant_conv.bias[:4] += torch.tensor([3.0, -2.0, 0.5, 0.0])  # latents that are far from normal
        vae.quant_conv.weight[:4] *= torch.tensor([5.0, 0.1, 1.0, 2.0]).view(-1, 1, 1, 1)
        posterior = vae.encode(pixels).latent_dist
        shown = vae.decode(posterior.mean).sample
        normalise_latents(vae, images, 7, CPU)
        normal = vae.encode(pixels).latent_dist
        torch.testing.assert_close(vae.decode(normal.mean).sample, shown, atol=1e-4, rtol=1e-4)
        variance = normal.mean.var((0, 2, 3), correction=0) + normal.var.mean((0, 2, 3))
        torch.testing.assert_close(normal.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(variance, torch.ones(4), atol=1e-3, rtol=0)
        # The noise is scaled with the latents, so the share of it stays the same.
        ratio = (normal.std / posterior.std).std((0, 2, 3)) / (normal.std / posterior.std).mean((0, 2, 3))
        assert ratio.max() < 1e-3
    assert vae.config.scaling_factor == 1.0


def test_training_that_diverges_stops_with_a_message() -> None:
    images = np.stack([smooth(number) for number in range(8)])
    config = AutoencoderTraining(steps=3, warmup_steps=0, batch_size=8, device="cpu")
    config = config.model_copy(update={"kl_weight": 1e38})  # no setting that is allowed diverges in three steps
    with pytest.raises(ConfigError, match="learning_rate"):
        train_autoencoder(build_scratch(Architecture.parse(TINY), [], seed=0).vae, images, config, 0, CPU, QUIET)


@pytest.mark.parametrize(("images", "batch"), [(10, 4), (3, 8), (1, 1), (7, 7)])
def test_every_image_comes_once_before_any_comes_again(images: int, batch: int) -> None:
    config = AutoencoderTraining(steps=21, warmup_steps=0, batch_size=batch)
    drawn = np.concatenate(list(batch_numbers(images, config, seed=3)))
    assert len(drawn) == 21 * batch
    epochs = [drawn[first : first + images].tolist() for first in range(0, len(drawn) - images + 1, images)]
    assert all(sorted(epoch) == list(range(images)) for epoch in epochs)
    if images > 5:
        assert epochs[0] != epochs[1]
        assert drawn.tolist() != np.concatenate(list(batch_numbers(images, config, seed=4))).tolist()


def test_rate_rises_then_falls_to_zero() -> None:
    config = AutoencoderTraining(steps=100, warmup_steps=10)
    rates = [rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(0.91)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)
    assert rate(0, AutoencoderTraining(steps=100, warmup_steps=0)) == 1.0


def test_command_trains_and_maps_errors(
    workbench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "model.yaml"
    config.write_text(json.dumps(settings()))
    arguments = ["--workdir", str(workbench.root), "--config", str(config), "--seed", "1", "--caption-set", SET]
    assert main([*arguments, "--source-id", SOURCE]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["trained"]) == ("done", True)
    assert result["base_model"] == workbench.ensure()["base_model"]
    assert main([*arguments, "--source-id", "unknown"]) == 65
    assert main([*arguments, "--source-id", SOURCE, "--set", "base=no/such/folder/here"]) == 78
    assert "no such folder" in capsys.readouterr().err
