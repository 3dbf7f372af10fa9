"""Captions that a text encoder cuts off are counted, and different ones that become equal stop the step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.autoencoder import base_model, caption_check
from components.autoencoder.base_model import TrainingData, ensure_base
from components.autoencoder.caption_check import check_captions
from components.autoencoder.config import ModelConfig
from components.autoencoder.declaration import STEP
from components.autoencoder.scratch import build_scratch
from components.dataset.caption_lengths import CaptionLengths, read_caption_lengths
from components.dataset.versions import records_of
from components.digests import sha256
from components.errors import DataError
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
from components.progress import Progress
from components.storage.open import open_storage

SOURCE, SET, KEY = "0123456789abcdef", "0123456789abcdef/mine", "fedcba9876543210"
# Four tokens, and those for beginning and end.
TINY = Architecture.parse(
    {
        "resolution": 16,
        "autoencoder": {"channels": [4, 4], "norm_groups": 2, "layers_per_block": 0},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 6, "vocabulary": 700},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
)
WORDS = ["one two three four five six seven eight nine", "One", "TWO"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_scratch(TINY, WORDS, seed=1).save_pretrained(folder)
    return folder


class Captions:
    """A caption set of two groups, written by hand."""

    def __init__(self, name: str) -> None:
        self.workdir = open_storage(f"memory://{name}")
        self.folder = self.workdir.child(f"captions/{SET}")
        self.write("g0")
        self.write("g1")
        write_manifest(self.workdir, SOURCE, Manifest("/nowhere", 2, 0, ("g0", "g1"), "d"))

    def write(self, group: str, *images: Sequence[str]) -> None:
        records = [
            CaptionRecord(
                sha256(repr(texts).encode()), "a.png", 1, tuple(Caption(t, "folder") for t in texts), "v", 8, 8
            )
            for texts in images
        ]
        write_captions(self.folder, group, records, [])

    def check(self, base: Path, *, reject_equal: bool = True, chunks: int = 1) -> CaptionLengths:
        return check_captions(base, ["g0", "g1"], SET, KEY, self.workdir, reject_equal=reject_equal, chunks=chunks)


@pytest.fixture
def captions(tmp_path: Path) -> Captions:
    return Captions(tmp_path.name)


def test_what_is_cut_is_counted_by_group(captions: Captions, base: Path) -> None:
    captions.write("g0", ["one two three four"], ["one two three four five", "one"], ["two three four five six seven"])
    captions.write("g1", ["two"], [""])
    lengths = captions.check(base, reject_equal=False)
    assert (lengths.captions, lengths.tokens, lengths.cut) == (6, 4, {"g0": 2, "g1": 0})
    assert lengths.total == {"captions": 6, "cut": 2, "tokens": 4}
    records = records_of(captions.workdir.child(f"datasets/{KEY}"), SET)
    assert read_caption_lengths(records) == lengths


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("one two three four five", "one two three four six"),
        ("one two three four", "one two three four five"),
        ("nine nine nine nine " * 40 + "one", "nine nine nine nine " * 40 + "two"),
    ],
)
def test_different_captions_that_become_equal_are_an_error_with_the_fix(
    captions: Captions, base: Path, one: str, other: str
) -> None:
    captions.write("g0", [one])
    captions.write("g1", ["one two"], [other])
    with pytest.raises(DataError) as raised:
        captions.check(base)
    message = str(raised.value)
    assert one[-40:] in message
    assert other[-40:] in message
    assert "4 tokens of a caption" in message
    assert "1 caption cannot be told from another" in message
    for fix in ("Shorten", "max_tokens", "latents.text_chunks, now 1", "latents.equal_captions"):
        assert fix in message
    assert captions.check(base, reject_equal=False).captions == 3
    with pytest.raises(DataError):
        captions.check(base)


def test_chunks_cut_less(captions: Captions, base: Path) -> None:
    """Four tokens each: a caption of eight is whole in two chunks, the ninth is cut."""
    captions.write("g0", ["one two three four five six seven eight"], ["one two three four nine"])
    captions.write("g1", ["one two three four five six seven eight nine"])
    assert captions.check(base, reject_equal=False).total == {"captions": 3, "cut": 3, "tokens": 4}
    assert captions.check(base, reject_equal=False, chunks=2).total == {"captions": 3, "cut": 1, "tokens": 8}
    with pytest.raises(DataError, match=r"reads 8 tokens.*latents\.text_chunks, now 2"):
        captions.check(base, chunks=2)
    assert captions.check(base, chunks=3).total == {"captions": 3, "cut": 0, "tokens": 12}


def test_a_base_that_was_trained_with_more_chunks_is_said() -> None:
    result = {"trained": False, "text_chunks": 1, "text_chunks_of_base": 2}
    assert STEP.summary(result, {}) == "it was trained with latents.text_chunks 2, and now with 1"


def test_advice_ends_where_the_setting_does(captions: Captions, base: Path) -> None:
    captions.write("g0", ["nine " * 40 + "one"], ["nine " * 40 + "two"])
    with pytest.raises(DataError) as raised:
        captions.check(base, chunks=8)
    assert "text_chunks" not in str(raised.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("one two three four five", "one two three four five"),
        ("One two three four five", "one  two three FOUR five"),
        ("one two three nine five", "one two three four five"),
        ("one two three", "one two three four"),
    ],
)
def test_what_says_the_same_or_stays_different_is_none(captions: Captions, base: Path, one: str, other: str) -> None:
    captions.write("g0", [one], [one, "two"])
    captions.write("g1", [other])
    assert captions.check(base).captions == 4


def test_a_rejected_image_counts_for_nothing(captions: Captions, base: Path) -> None:
    captions.write("g0", ["one two three four five"], ["one two three four six"])
    with pytest.raises(DataError):
        captions.check(base)
    rejected = sha256(repr(["one two three four six"]).encode())
    write_rejections(captions.folder, clean_rejections_key("g0"), [Rejection("a", "clean", "near", "", rejected)])
    assert captions.check(base).total == {"captions": 1, "cut": 1, "tokens": 4}


def test_nothing_is_loaded_if_nothing_changed(captions: Captions, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions.write("g0", ["one two three four five"])
    first = captions.check(base)
    with monkeypatch.context() as patch:
        patch.setattr(caption_check, "token_limits", lambda *_: pytest.fail("the tokenizers were loaded"))
        assert captions.check(base) == first
    captions.write("g1", ["one"])
    assert captions.check(base).captions == 2
    records_of(captions.workdir.child(f"datasets/{KEY}"), SET).write("captions.json", b'{"format": 2, "cut": 3}')
    assert captions.check(base).captions == 2, "a damaged record is made again"


def test_a_model_from_scratch_is_not_trained_for_captions_it_cannot_tell_apart(
    captions: Captions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_manifest(captions.workdir, SOURCE, Manifest(str(tmp_path), 2, 0, ("g0", "g1"), "d"))
    monkeypatch.setattr(base_model, "_read", lambda *_: None)
    captions.write("g0", ["one two three four five"], ["one two three four six"])
    config = ModelConfig.parse({"scratch": {"architecture": TINY.model_dump(), "training": {"device": "cpu"}}})
    with pytest.raises(DataError, match="cannot be told from another"):
        ensure_base(config, 1, TrainingData(SOURCE, SET, {}, 0.0), captions.workdir, Progress(io.StringIO()))
    assert not list(captions.workdir.list("models"))
