"""What a recipe says follows from the images and the machine, and each choice has its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from components.digests import sha256
from components.errors import DataError
from components.model.devices import Gpu
from pipeline.config import RunConfig, resolve
from pipeline.local.init.choices import Choices, choose
from pipeline.local.init.images import ImageSurvey, RejectedFiles, SurveyedSource
from pipeline.local.init.machine import Machine
from pipeline.local.init.recipe_text import recipe_text

RECIPES = {name: resolve(name) for name in ("scratch", "finetune")}
LAPTOP = Machine(cores=2, gpus=(), free_bytes=10**11, base="no")
BIG = Machine(cores=16, gpus=(Gpu("NVIDIA A100-SXM4-40GB", 40 * 2**30),), free_bytes=10**12, base="hub")
CLASSES = {"a photo of a beach": 60, "a photo of a forest": 60}


def survey(count: int = 120, **changes: Any) -> ImageSurvey:
    captions = changes.pop("captions", CLASSES)
    whole = ImageSurvey(
        source="/photos", layout="folder", count=count, seen=min(count, 2000),
        sha256s=tuple(sha256(b"%d" % number) for number in range(min(count, 2000))),
        formats={"JPEG": count}, short_sides=(300,) * min(count, 2000), licenses={None: count}, rejected=(),
        other_files={}, classes={"beach": 60, "forest": 60}, captioned={"folder": min(count, 2000)}, uncaptioned=0,
        captions=captions, decoded=100,
    )  # fmt: skip
    return replace(whole, **changes)


def recipe(found: ImageSurvey, machine: Machine = LAPTOP) -> tuple[RunConfig, Choices, str]:
    choices = choose(found, machine, RECIPES)
    text = recipe_text("mine", found, choices, "ten minutes")
    return resolve(text), choices, text


def test_the_recipe_is_what_was_chosen() -> None:
    config, choices, text = recipe(survey())
    assert (config.name, config.ingest.source, config.model.base) == ("mine", "/photos", None)
    assert (config.train.epochs, config.train.steps) == (choices.epochs, None)
    assert choices.steps * config.train.global_batch >= 25_000
    assert config.evaluate.prompts == config.train.samples.prompts == ("a photo of a beach", "a photo of a forest")
    assert config.caption.sources == ("folder",)
    assert "ten minutes" in text.lower()
    settings = [line for line in text.splitlines() if ": " in line and not line.lstrip().startswith("#")]
    assert all("#" in line for line in settings if "*prompts" not in line and "sources" not in line), text


def test_several_sources_are_written_with_repeats_that_somebody_may_change() -> None:
    sources = (SurveyedSource("/a: b", 70, 2, 0.7), SurveyedSource("s3://c/d", 50, 0, 0.3))
    config, _, text = recipe(survey(sources=sources))
    assert config.ingest.places == ("/a: b", "s3://c/d")
    assert [one.repeats for one in config.ingest.sources] == [1.0, 1.0]
    edited = resolve(text.replace("repeats: 1.0", "repeats: 2.5", 1))
    assert [one.repeats for one in edited.ingest.sources] == [2.5, 1.0]
    lines = text.splitlines()
    assert any("/a: b" in line and "70 images" in line for line in lines)
    assert any("repeats: 1.0" in line and "of an epoch" in line for line in lines)
    assert "weight" in text


def test_settings_of_ingest_that_were_given_are_in_it() -> None:
    given = {"layout": "addresses", "rows.image": "a: b", "rows.splits": ["train", "test"], "readers": 3}
    config = recipe(survey(given=given))[0]
    assert (config.ingest.layout, config.ingest.rows.image, config.ingest.readers) == ("addresses", "a: b", 3)
    assert config.ingest.rows.splits == ("train", "test")


def test_nothing_of_the_demo_is_in_it() -> None:
    config, _, text = recipe(survey())
    assert config.launch.spot_drill.step is None
    assert config.evaluate.promotion.required == {}
    assert "digit" not in str(config.model_dump())
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("machine", "base", "words"),
    [
        (LAPTOP, "scratch", "no GPU"),
        (BIG, "finetune", "40 GiB"),
        (replace(BIG, base="no"), "scratch", "hub"),
        (replace(BIG, gpus=(Gpu("NVIDIA T4", 15 * 2**30),)), "scratch", "15 GiB"),
    ],
)
def test_the_method_fits_the_machine(machine: Machine, base: str, words: str) -> None:
    config, choices, text = recipe(survey(), machine)
    assert (choices.base.value, (config.model.base is None)) == (base, base == "scratch")
    assert words in text.splitlines()[1] + text.splitlines()[2]
    assert config.train.ranks == (max(1, len(machine.gpus)) if machine.gpus else 2)


@pytest.mark.parametrize("count", [4, 20, 200, 5_000, 3_000_000])
def test_any_number_of_images_gives_a_run_that_can_be_measured(count: int) -> None:
    config, choices, _ = recipe(survey(count))
    assert 1 <= choices.epochs <= 1000
    assert choices.steps > config.train.optimizer.warmup_steps
    assert config.train.samples.every is not None
    assert config.index.held_out > 0


def test_too_few_images_are_an_error_that_says_why() -> None:
    rejected = (RejectedFiles("too-small", 9, "icon.png", "8×8"),)
    with pytest.raises(DataError, match=r"3 usable images.*9 × too-small"):
        recipe(survey(3, rejected=rejected))


def test_small_images_get_a_small_model() -> None:
    config, _, _ = recipe(survey(short_sides=(28,) * 120))
    assert config.latents.resolution == config.model.scratch.architecture.resolution == 32


def test_long_captions_are_not_cut_and_many_words_have_their_tokens() -> None:
    captions = {" ".join(f"word{10 * number + i}" for i in range(30)): 1 for number in range(120)}
    config, _, _ = recipe(survey(captions=captions, captioned={"sidecar": 120}))
    text = config.model.scratch.architecture.text
    assert text.max_tokens >= 40
    assert text.vocabulary >= 514 + 1200
    assert config.caption.sources == ("sidecar",)


@pytest.mark.parametrize(("words", "chunks"), [(30, None), (60, None), (61, 2), (130, 3), (2000, 3)])
def test_a_fine_tune_reads_long_captions_in_chunks(words: int, chunks: int | None) -> None:
    captions = {" ".join(["word"] * words): 60, "short": 60}
    config, _, text = recipe(survey(captions=captions, captioned={"sidecar": 120}), BIG)
    assert config.latents.text_chunks == chunks
    assert ("text_chunks" in text) == (chunks is not None)
    config, _, _ = recipe(survey(captions=captions, captioned={"sidecar": 120}))
    assert config.latents.text_chunks is None, "a model made from nothing gets a longer text encoder"
    assert config.model.scratch.architecture.text.max_tokens >= min(1.25 * words + 2, 227)


def test_captions_that_are_all_different_lend_some_prompts() -> None:
    captions = {f"picture number {number}": 1 for number in range(120)}
    config, _, _ = recipe(survey(captions=captions, captioned={"sidecar": 120}))
    assert len(config.evaluate.prompts) == 4
    assert set(config.evaluate.prompts) <= set(captions)


def test_images_without_captions_get_a_captioner_or_one_caption() -> None:
    bare = survey(classes={}, captioned={}, uncaptioned=120, captions={})
    config, choices, _ = recipe(bare)
    assert (config.caption.sources, config.caption.fixed) == (("fixed",), "a photo")
    assert any("caption.fixed" in text for text in choices.assumed)
    config, _, _ = recipe(bare, BIG)
    assert (config.caption.sources, config.caption.model) == (("model",), ("blip",))


@pytest.mark.parametrize(
    "caption", ["yes", "a: b # c", "- x", "'", '"', "ä\N{PILE OF POO}", "{", "null", "1.0", "&a *b"]
)
def test_captions_stay_what_they_are(caption: str) -> None:
    config, _, text = recipe(survey(captions={caption: 60, "other": 60}))
    assert set(config.evaluate.prompts) == {caption, "other"}, text


def test_names_stay_names() -> None:
    source = "/pho # to's/\N{RIGHT-TO-LEFT OVERRIDE}: [x]"
    config, _, text = recipe(survey(source=source, classes={"x\ny: z": 60, "b": 60}))
    assert config.ingest.source == source
    assert yaml.safe_load(text)["name"] == "mine"
