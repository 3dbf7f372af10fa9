"""Images are rejected once all are known: by thresholds that may change, and as near duplicates over all groups."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.clean.__main__ import main
from components.clean.cleaning import STATE, clean
from components.clean.config import CleanConfig
from components.clean.declaration import _tokens
from components.errors import ConfigError, DataError
from components.image.decoding import ImageLimits
from components.image.filters import PIXEL_SCORES, FilterConfig
from components.image.records import (
    Caption,
    CaptionRecord,
    Manifest,
    Rejection,
    clean_rejections_key,
    read_accepted,
    read_captions,
    read_clean_rejections,
    read_manifest,
    write_captions,
    write_manifest,
    write_rejections,
)
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from pipeline.config import resolve
from tests.stores.memory import MemoryStorage
from tests.stores.mortal import contents, killed_everywhere

SET = "source/abcd"
FLAT = 0x0123456789ABCDEF


class Dataset:
    """Captioned images whose images nobody has to paint."""

    def __init__(self, name: str, groups: int = 2) -> None:
        self.work: Storage = MemoryStorage(name)
        self.storage: Storage = self.work.child(f"captions/{SET}")
        self.groups = tuple(f"g{number}" for number in range(groups))
        self.records: dict[str, CaptionRecord] = {}
        write_manifest(self.work, "source", Manifest("memory://nowhere", 0, 0, self.groups, "digest"))
        write_rejections(self.work, "ingest/source/rejected.jsonl", [])

    def add(self, digest: str, phash: int | None = None, side: int = 100, **scores: str) -> None:
        sha256 = f"{digest:0<64}"
        verdicts = {**dict.fromkeys(PIXEL_SCORES, "0 v1"), "spread": "50 v1", "sharpness": "200 v1", **scores}
        self.records[sha256] = CaptionRecord(
            sha256, f"{digest}.jpg", 1000, (Caption(f"image {digest}", "sidecar:a.txt"),), "v", side, side, verdicts,
            phash=None if phash is None else f"{phash:016x}",
        )  # fmt: skip

    def write(self) -> None:
        for number, group in enumerate(self.groups):
            mine = [one for one in self.records.values() if int(one.sha256[:8], 16) % len(self.groups) == number]
            write_captions(self.storage, group, mine, [])

    def clean(self, filters: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
        self.write()
        config, thresholds = CleanConfig.parse(values), FilterConfig.parse(filters or {})
        return clean(config, thresholds, "source", self.groups, SET, self.work, Progress(io.StringIO()))

    def kept(self) -> list[str]:
        return [one.name.removesuffix(".jpg") for group in self.groups for one in read_accepted(self.storage, group)]

    def rejected(self) -> dict[str, Rejection]:
        rejections = [one for group in self.groups for one in read_clean_rejections(self.storage, group)]
        return {one.name.removesuffix(".jpg"): one for one in rejections}


def test_the_report_knows_how_much_of_a_caption_will_be_read() -> None:
    def tokens(*overrides: str) -> int:
        return _tokens(resolve("demo", overrides), MemoryStorage("clean-tokens"))

    assert tokens() == 6, "of eight, a beginning and an end"
    assert tokens("latents.text_chunks=3") == 18
    assert tokens("model.base=runwayml/stable-diffusion-v1-5") == 75
    assert tokens("model.base=runwayml/stable-diffusion-v1-5", "latents.text_chunks=2") == 150


def test_near_duplicates_are_found_over_all_groups_and_the_largest_stays() -> None:
    data = Dataset("clean-near")
    for digest, phash, side in [("1a", FLAT, 100), ("2b", FLAT ^ 1, 300), ("3c", FLAT ^ 6, 200), ("4d", ~FLAT, 50)]:
        data.add(digest, phash & (2**64 - 1), side)
    data.add("5e", phash=None)
    result = data.clean(max_distance=3)
    assert (result["kept"], result["rejected_here"], result["reused"]) == (3, 2, False)
    assert sorted(data.kept()) == ["2b", "4d", "5e"]
    rejections = data.rejected()
    assert {name: (one.reason, one.step, one.value, one.threshold) for name, one in rejections.items()} == {
        "1a": ("near-duplicate", "clean", 1, 3), "3c": ("near-duplicate", "clean", 3, 3)
    }  # fmt: skip
    assert rejections["3c"].detail.startswith("looks like '2b.jpg', which is kept: 3 of 64 bits differ")
    assert {one.sha256 for one in rejections.values()} <= set(data.records)


def test_of_equal_ones_the_smallest_digest_stays_and_without_a_distance_all_do() -> None:
    data = Dataset("clean-equal")
    for digest in ("9", "5", "7"):
        data.add(digest, FLAT)
    data.clean(max_distance=0)
    assert data.kept() == ["5"]
    assert data.clean()["rejected_here"] == 0
    assert sorted(data.kept()) == ["5", "7", "9"]


def test_what_the_filters_leave_out_is_nobodys_original() -> None:
    data = Dataset("clean-order")
    data.add("a", FLAT, side=900, sharpness="3 v1")
    data.add("b", FLAT, side=100)
    data.clean({"min_sharpness": 10}, max_distance=2)
    assert data.kept() == ["b"]
    assert {name: one.reason for name, one in data.rejected().items()} == {"a": "blurry"}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3)), max_size=24))
def test_the_outcome_depends_neither_on_the_groups_nor_on_their_order(images: list[tuple[int, int]]) -> None:
    outcomes = []
    for groups in (1, 3):
        data = Dataset(f"clean-groups-{groups}", groups)
        for number, (phash, side) in enumerate(images):
            data.add(f"{number:04x}{phash}", FLAT ^ phash, side)
        data.clean(max_distance=1, kept_images=0, rejected_images=0)
        outcomes.append((sorted(data.kept()), sorted((name, one.detail) for name, one in data.rejected().items())))
        data.storage.delete_tree("captions")
    assert outcomes[0] == outcomes[1]


def test_a_threshold_takes_effect_without_a_look_at_anything() -> None:
    data = Dataset("clean-thresholds")
    for digest, sharpness in [("a", 10), ("b", 50), ("c", 90)]:
        data.add(digest, sharpness=f"{sharpness} v1")
    kept = []
    for threshold in (None, 20, 60, 100, 20):
        data.clean({"min_sharpness": threshold})
        kept.append(sorted(data.kept()))
    assert kept == [["a", "b", "c"], ["b", "c"], ["c"], [], ["b", "c"]]
    assert data.rejected()["a"].scores == data.records[f"{'a':0<64}"].verdicts


def test_where_nothing_changed_nothing_is_done() -> None:
    data = Dataset("clean-again")
    data.add("a", FLAT)
    data.add("b", FLAT ^ 1)
    first = data.clean(max_distance=2)
    keys = [entry.key for entry in data.storage.list() if not entry.key.endswith("g0.jsonl")]
    for key in ("report.html", "report.md", "report.json"):
        data.storage.write(key, b"untouched")
    again = data.clean(max_distance=2)
    assert again == {**first, "reused": True}
    assert data.storage.read("report.html") == b"untouched"
    for lost in ("report.html", clean_rejections_key("g1"), STATE):
        data.storage.delete(lost)
        assert data.clean(max_distance=2) == first
        assert data.storage.exists(lost)
    data.storage.write(STATE, b"torn")
    assert data.clean(max_distance=2) == first
    data.storage.write_json(STATE, {**data.storage.read_json(STATE), "format": 1})
    assert data.clean(max_distance=2) == first, "a state in an older format is made again from the captions"
    assert set(keys) <= {entry.key for entry in data.storage.list()}


def test_an_old_name_of_a_setting_is_rejected_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match="kept_pictures is now kept_images"):
        CleanConfig.parse({"kept_pictures": 3})


@pytest.mark.parametrize("change", ["caption", "image", "caption rejection", "ingest rejection", "setting", "filter"])
def test_whatever_changes_is_seen(change: str) -> None:
    data = Dataset(f"clean-change-{change}")
    data.add("a", FLAT)
    data.clean()
    rejection = Rejection("x.jpg", "ingest", "too-small", "8 px")
    values: dict[str, Any] = {}
    if change == "caption":
        (sha256,) = data.records
        data.records[sha256] = replace(data.records[sha256], captions=(Caption("other words", "none"),))
    elif change == "image":
        data.add("b", FLAT)
    elif change == "caption rejection":
        write_rejections(data.storage, "g0.rejected.jsonl", [rejection])
    elif change == "ingest rejection":
        write_rejections(data.work, "ingest/source/rejected.jsonl", [rejection])
    elif change == "setting":
        values = {"max_distance": 1}
    else:
        values = {"filters": {"min_spread": 2}}
    if change == "caption rejection":  # which `write` would undo
        config = CleanConfig()
        result = clean(config, FilterConfig(), "source", data.groups, SET, data.work, Progress(io.StringIO()))
    else:
        result = data.clean(**values)
    assert result["reused"] is False
    assert result["rejected"] == ("rejection" in change)


def test_killed_anywhere_it_ends_as_it_would_have_and_does_not_pass_for_what_was_before(tmp_path: Path) -> None:
    def cleaned(work: Storage, distance: int) -> dict[str, bytes]:
        data = Dataset(work.url.removeprefix("memory://"))
        data.work, data.storage = work, work.child(f"captions/{SET}")
        for number in range(8):
            data.add(f"{number}", FLAT ^ (1 << number))
        if not work.exists(f"captions/{SET}/g0.jsonl"):
            data.write()
        config = CleanConfig(max_distance=distance)
        clean(config, FilterConfig(), "source", data.groups, SET, work, Progress(io.StringIO()))
        return contents(work)

    def life(work: Storage) -> dict[str, bytes]:
        return cleaned(work, 0)

    def other_life(work: Storage) -> dict[str, bytes]:
        return cleaned(work, 2)

    before, after = life(MemoryStorage(f"{tmp_path.name}-a")), other_life(MemoryStorage(f"{tmp_path.name}-b"))
    for moment, work in enumerate(killed_everywhere(life, other_life, f"memory://{tmp_path.name}-there")):
        assert other_life(work) == after, f"killed at {moment}"
    for moment, work in enumerate(killed_everywhere(life, other_life, f"memory://{tmp_path.name}-and-back")):
        assert life(work) == before, f"killed at {moment}"
    assert moment >= 5, "two groups, two pages of report, its numbers and the state"


def test_ten_thousand_known_images_take_no_time() -> None:
    data = Dataset("clean-many", groups=8)
    random = np.random.default_rng(0)
    for number in range(10_000):
        data.add(f"{int(random.integers(2**60)):015x}{number:05x}", int(random.integers(2**63)), side=number % 900 + 1)
    assert data.clean(max_distance=4)["kept"] > 9000
    config = CleanConfig(max_distance=4)
    seconds = []
    for _ in range(3):
        began = time.process_time()
        result = clean(config, FilterConfig(), "source", data.groups, SET, data.work, Progress(io.StringIO()))
        seconds.append(time.process_time() - began)
        assert result["reused"]
    assert min(seconds) < 0.5


def test_a_group_without_captions_is_said() -> None:
    data = Dataset("clean-missing")
    with pytest.raises(DataError, match="run the caption step first"):
        clean(CleanConfig(), FilterConfig(), "source", data.groups, SET, data.work, Progress(io.StringIO()))


def photos(root: Path) -> None:
    root.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(f"image {number}")
    Image.open(root / "1.png").resize((60, 40)).save(root / "again.jpg")
    Image.new("RGB", (50, 50), "white").save(root / "plain.png")
    for name in ("again", "plain"):
        (root / f"{name}.txt").write_text(name)


def captioned(root: Path, work: Storage, **values: Any) -> tuple[str, tuple[str, ...]]:
    progress = Progress(io.StringIO())
    source_id = ingest(IngestConfig.parse({"source": str(root)}), work, progress)["source_id"]
    groups = read_manifest(work, source_id).groups
    for group in groups:
        config = CaptionConfig.parse({"model": None, **values})
        caption(config, ImageLimits(), group, source_id, SET, work, progress)
    return source_id, groups


def test_real_images_through_ingest_caption_and_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "photos")
    work = MemoryStorage("clean-real")
    source_id, groups = captioned(tmp_path / "photos", work)
    arguments = ["--workdir", work.url, "--source-id", source_id, "--caption-set", SET, "--groups", *groups]
    assert main([*arguments, "--set", "max_distance=6"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["kept"], result["rejected_here"], result["rejected"]) == (4, 2, 2)
    storage = work.child(f"captions/{SET}")
    rejections = {one.name: one.reason for group in groups for one in read_clean_rejections(storage, group)}
    assert rejections == {"again.jpg": "near-duplicate", "plain.png": "flat"}
    assert main([*arguments, "--filter", "min_spread=null"]) == 0
    assert {one.name for group in groups for one in read_accepted(storage, group)} >= {"again.jpg", "plain.png"}


def test_nothing_is_read_for_another_threshold_and_all_is_for_another_measure(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    work = MemoryStorage("clean-measured")
    source_id, (group,) = captioned(tmp_path / "photos", work)
    storage = work.child(f"captions/{SET}")
    before = work.read(f"captions/{SET}/{group}.jsonl")
    for one in (tmp_path / "photos").iterdir():  # from here on nothing can be read
        one.rename(one.with_suffix(one.suffix + ".gone"))
    config = CaptionConfig.parse({"model": None, "filters": {"min_sharpness": 1e5, "min_spread": 100}})
    for _ in range(2):
        result = caption(config, ImageLimits(), group, source_id, SET, work, Progress(io.StringIO()))
        assert (result["captioned"], result["reused"], result["rejected"]) == (0, 6, 0)
    assert work.read(f"captions/{SET}/{group}.jsonl") == before
    for one in (tmp_path / "photos").iterdir():
        one.rename(str(one).removesuffix(".gone"))
    # Records from before there were scores are measured, and keep their captions.
    records = [replace(one, verdicts={"caption": "kept"}, phash=None) for one in read_captions(storage, group)]
    write_captions(storage, group, records, [])
    result = caption(config, ImageLimits(), group, source_id, SET, work, Progress(io.StringIO()))
    assert (result["captioned"], result["reused"]) == (0, 6)
    again = read_captions(storage, group)
    assert [one.captions for one in again] == [one.captions for one in records]
    assert all(one.phash and set(one.verdicts) == {"caption", *PIXEL_SCORES} for one in again)
