"""The index step: shards join, what is gone becomes a tombstone, and nothing changes where nothing changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.dataset.encoding_record import write_encoding
from components.dataset.format import (
    Sample,
    SampleId,
    index_key,
    pack,
    read_index,
    sample_id,
    sample_key,
    shard_name,
    tar_key,
)
from components.dataset.versions import Dataset, is_held_out, read_dataset, write_group
from components.digests import sha256
from components.errors import DataError
from components.image.records import (
    Caption,
    CaptionRecord,
    Manifest,
    Rejection,
    latents_rejections_key,
    read_captions,
    write_captions,
    write_manifest,
    write_rejections,
)
from components.image.union import UnionMember
from components.index.__main__ import main
from components.index.build import index, join
from components.index.config import IndexConfig
from components.progress import Progress
from components.storage.open import open_storage

KEY = "fedcba9876543210"
SOURCE = "0123456789abcdef"
SET = f"{SOURCE}/mine"
HELD_OUT = 0.3
Item = tuple[str, str]  # an image's digest and its caption


def items(count: int, start: int = 0) -> list[Item]:
    return [(sha256(str(i).encode()), f"image {i}") for i in range(start, start + count)]


class Workbench:
    """A workdir after caption and latents, made by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workdir = open_storage(str(root))
        self.dataset = self.workdir.child(f"datasets/{KEY}")
        self.records = self.dataset.child(f"sets/{SET}")
        self.captions = self.workdir.child(f"captions/{SET}")
        write_encoding(self.dataset, {"version": 1})
        write_rejections(self.workdir, f"ingest/{SOURCE}/rejected.jsonl", [])
        write_manifest(self.workdir, SOURCE, Manifest("photos", 0, 0, (), ""))

    def caption(self, group: str, accepted: Sequence[Item], rejections: Sequence[Rejection] = ()) -> None:
        records = [
            CaptionRecord(image, f"{image[:4]}.png", 1, (Caption(caption, "sidecar:a.txt"),), "v", 8, 8)
            for image, caption in accepted
        ]
        write_captions(self.captions, group, records, rejections)

    def shard(self, held: Sequence[Item], variants: int = 1) -> str:
        array = np.zeros((2, 1, 1), np.float16)
        ids = [(sample_key(item[0], v), sample_id(*item, v)) for item in held for v in range(variants)]
        name = shard_name((8, 16), ids)
        tar, idx = pack([Sample(key, array, array[0], {"caption_digest": i.caption}, i.variant) for key, i in ids])
        self.dataset.write(tar_key(name), tar)
        self.dataset.write(index_key(name), idx)
        return name

    def group(self, group: str, *shards: str, variants: int = 1) -> None:
        write_group(self.records, group, shards, variants)

    def index(self, groups: Sequence[str] = ("000",), held_out: float = HELD_OUT) -> Dataset:
        self.result = index(IndexConfig(held_out=held_out), SOURCE, groups, SET, KEY, self.workdir, Progress())
        dataset = read_dataset(self.dataset, SET)
        assert dataset is not None
        return dataset

    def trained(self, dataset: Dataset) -> set[SampleId]:
        """The samples that training would see."""
        return {read_index(self.dataset, shard.name).samples[i].id for shard in dataset.shards for i in shard.train}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def pairs(accepted: Sequence[Item], held_out: float = HELD_OUT) -> set[SampleId]:
    return {sample_id(*item) for item in accepted if not is_held_out(item[0], held_out)}


def union(bench: Workbench, accepted: Sequence[Item], small: int, **of_small: float) -> Dataset:
    """Index the union of two sources, of which the second has the last few images."""
    members = [UnionMember(label, label, f"/{label}", 0, 0) for label in ("large", "small")]
    members[1] = replace(members[1], repeats=of_small.get("repeats"), weight=of_small.get("weight"))
    members[0] = replace(members[0], weight=of_small.get("others_weight"))
    write_manifest(bench.workdir, SOURCE, Manifest("photos", 0, 0, (), "", members=tuple(members)))
    bench.caption("000", accepted)
    of_small_source = {image for image, _ in accepted[-small:]}
    records = read_captions(bench.captions, "000")
    named = [replace(one, name=f"{members[one.sha256 in of_small_source].label}/a.png") for one in records]
    write_captions(bench.captions, "000", named, [])
    return bench.index()


def test_a_union_without_repeats_is_the_dataset_of_one_source(bench: Workbench) -> None:
    accepted = items(20)
    bench.caption("000", accepted)
    bench.group("000", bench.shard(accepted))
    alone = bench.index()
    assert union(bench, accepted, 5).digest == alone.digest
    assert union(bench, accepted, 5, repeats=1.0).digest == alone.digest
    assert [row["images"] for row in bench.result["sources"]] == [15, 5]


def test_images_of_a_repeated_source_stand_more_often_in_an_epoch_and_held_out_ones_do_not(bench: Workbench) -> None:
    accepted = items(20)
    bench.group("000", bench.shard(accepted[:8]), bench.shard(accepted[8:]))
    dataset = union(bench, accepted, 5, repeats=2.5)
    small = {image for image, _ in accepted[-5:]}
    rates: dict[str, str] = {}
    for shard in dataset.shards:
        samples = read_index(bench.dataset, shard.name).samples
        digits = zip(shard.train, shard.train_repeats, strict=True)
        rates |= {samples[i].image: dataset.repeats[int(digit, 36)] for i, digit in digits}
    assert rates == {sample.image: "5/2" if sample.image in small else "1" for sample in pairs(accepted)}
    trained = len(small & rates.keys())
    assert dataset.epoch_samples == round(len(rates) - trained + 2.5 * trained)
    assert [row["repeats"] for row in bench.result["sources"]] == [1.0, 2.5]
    assert sorted(len(shard.repeats) for shard in dataset.shards) == [1, 12], "one digit for all that are alike"


@pytest.mark.parametrize(("large", "small"), [(1.0, 1.0), (3.0, 1.0), (0.1, 0.9), (9.0, 1.0)])
def test_weights_are_shares_of_an_epoch_in_which_each_image_stands_at_least_once(
    bench: Workbench, large: float, small: float
) -> None:
    accepted = items(40)
    bench.group("000", bench.shard(accepted))
    dataset = union(bench, accepted, 6, weight=small, others_weight=large)
    rows = bench.result["sources"]
    assert min(row["repeats"] for row in rows) == 1
    entries = [row["samples"] * row["repeats"] for row in rows]
    assert sum(entries) == pytest.approx(dataset.epoch_samples, abs=1)
    assert entries[1] == pytest.approx(small / (large + small) * dataset.epoch_samples, abs=1)


def test_groups_join_into_one_dataset(bench: Workbench) -> None:
    first, second = items(20), items(15, start=20)
    bench.caption("000", first)
    bench.caption("001", second)
    names = [bench.shard(first[:12]), bench.shard(first[12:]), bench.shard(second)]
    bench.group("000", *names[:2])
    bench.group("001", names[2])
    dataset = bench.index(["000", "001"])
    assert [shard.name for shard in dataset.shards] == sorted(names)
    assert bench.trained(dataset) == pairs(first + second)
    held_out = sum(is_held_out(image, HELD_OUT) for image, _ in first + second)
    assert (dataset.images, dataset.held_out, dataset.rejected) == (35, held_out, 0)
    assert 0 < held_out < 35
    assert {shard.bucket for shard in dataset.shards} == {(8, 16)}
    assert bench.result == {
        "dataset_digest": dataset.digest,
        "images": 35,
        "samples": 35,
        "held_out": held_out,
        "rejected": 0,
        "shards": 3,
        "encoding_key": KEY,
        "caption_set": SET,
        "captions_by": {"sidecar": 35},
    }
    assert dataset.captions_by == {"sidecar": 35}


def test_authors_are_listed_with_the_most_captions_first(bench: Workbench) -> None:
    by_author = {"sidecar:a.txt": 2, "model:blip@1": 5, "folder": 5}
    held = items(sum(by_author.values()))
    authors = [author for author, count in by_author.items() for _ in range(count)]
    records = [
        CaptionRecord(image, f"{image[:4]}.png", 1, (Caption(caption, author),), "v", 8, 8)
        for (image, caption), author in zip(held, authors, strict=True)
    ]
    write_captions(bench.captions, "000", records, [])
    bench.group("000", bench.shard(held))
    assert list(bench.index().captions_by.values()) == [5, 5, 2]


def test_captions_to_take_prompts_from_are_noted(bench: Workbench) -> None:
    accepted = [(image, "common" if number % 3 else caption) for number, (image, caption) in enumerate(items(30))]
    bench.caption("000", accepted)
    bench.group("000", bench.shard(accepted))
    noted = bench.index().noted_captions
    assert noted.common == ("common",)
    assert set(noted.held_out) == {caption for image, caption in accepted if is_held_out(image, HELD_OUT)}
    assert bench.index(held_out=0).noted_captions.held_out == ()


def test_nothing_changed_gives_the_same_bytes(bench: Workbench) -> None:
    bench.caption("000", items(9))
    bench.group("000", bench.shard(items(9)))
    bench.index()
    before = bench.records.read("dataset.json"), bench.records.read("rejected.jsonl")
    bench.index()
    assert (bench.records.read("dataset.json"), bench.records.read("rejected.jsonl")) == before


def test_new_images_join_and_old_shards_stay(bench: Workbench) -> None:
    bench.caption("000", items(9))
    old = bench.shard(items(9))
    bench.group("000", old)
    before = bench.index()
    bench.caption("000", items(12))
    new = bench.shard(items(3, start=9))
    bench.group("000", old, new)
    dataset = bench.index()
    assert {shard.name for shard in dataset.shards} == {old, new}
    assert before.shards[0] in dataset.shards
    assert bench.trained(dataset) == pairs(items(12))
    assert dataset.digest != before.digest


def test_vanished_image_is_a_tombstone_and_comes_back_to_life(bench: Workbench) -> None:
    accepted = items(9)
    gone = next(item for item in accepted if not is_held_out(item[0], HELD_OUT))
    bench.caption("000", accepted)
    name = bench.shard(accepted)
    bench.group("000", name)
    first = bench.index()
    left = [item for item in accepted if item != gone]
    bench.caption("000", left)
    without = bench.index()
    assert without.shards[0].tombstones == (accepted.index(gone),)
    assert without.images == 8
    assert bench.trained(without) == pairs(left)
    assert without.digest != first.digest
    bench.caption("000", accepted)
    assert bench.index() == first


def test_changed_caption_leaves_a_tombstone(bench: Workbench) -> None:
    accepted = items(9)
    bench.caption("000", accepted)
    old = bench.shard(accepted)
    bench.group("000", old)
    bench.index(held_out=0.0)
    changed = (accepted[4][0], "another caption")
    now = [*accepted[:4], changed, *accepted[5:]]
    bench.caption("000", now)
    new = bench.shard([changed])
    bench.group("000", old, new)
    dataset = bench.index(held_out=0.0)
    assert bench.trained(dataset) == pairs(now, 0.0)
    assert {shard.name: shard.tombstones for shard in dataset.shards} == {old: (4,), new: ()}
    assert dataset.images == 9


def test_sample_that_two_shards_hold_counts_once(bench: Workbench) -> None:
    accepted = items(6)
    bench.caption("000", accepted)
    bench.group("000", bench.shard(accepted[:4]), bench.shard(accepted[2:]))
    dataset = bench.index(held_out=0.0)
    assert dataset.images == 6
    trained = [read_index(bench.dataset, s.name).samples[i].id for s in dataset.shards for i in s.train]
    assert sorted(trained) == sorted(pairs(accepted, 0.0))


def test_whichever_shard_comes_first_a_sample_counts_in_the_first_by_name(bench: Workbench) -> None:
    accepted = items(6)
    shards = [(name, read_index(bench.dataset, name)) for name in (bench.shard(accepted[:4]), bench.shard(accepted))]
    live = {sample_id(*item) for item in accepted}
    joined = join(shards, live, held_out=0.0)
    assert [shard.name for shard in joined] == sorted(name for name, _ in shards)
    assert joined[0].tombstones == ()
    assert sum(len(shard.train) for shard in joined) == 6
    assert join(reversed(shards), live, held_out=0.0) == joined


def test_rejections_of_all_steps_are_merged(bench: Workbench) -> None:
    poison = Rejection("z\n<b>.png", "ingest", "not-an-image", "begins with \udcff")
    empty = Rejection("a.png", "caption", "caption-empty", "0 characters", sha256="ab")
    write_rejections(bench.workdir, f"ingest/{SOURCE}/rejected.jsonl", [poison])
    bench.caption("000", items(5), [empty])
    bench.group("000", bench.shard(items(5)))
    assert bench.index().rejected == 2
    lines = list(bench.records.read_records("rejected.jsonl"))
    assert [(line["name"], line["step"], line["reason"]) for line in lines] == [
        ("a.png", "caption", "caption-empty"),
        ("z\n<b>.png", "ingest", "not-an-image"),
    ]


def test_image_that_the_latents_step_rejected_is_not_missed(bench: Workbench) -> None:
    bench.caption("000", items(5))
    rejection = Rejection("b.png", "latents", "decoder-died", "signal 11", items(5)[2][0], "v")
    write_rejections(bench.records, latents_rejections_key("000"), [rejection])
    bench.group("000", bench.shard([*items(2), *items(2, start=3)]))
    dataset = bench.index()
    assert (dataset.images, dataset.rejected) == (4, 1)
    assert [line["reason"] for line in bench.records.read_records("rejected.jsonl")] == ["decoder-died"]


def test_every_variant_of_a_live_image_is_live_and_shares_its_fate(bench: Workbench) -> None:
    bench.caption("000", items(40))
    bench.group("000", bench.shard(items(40), variants=3), variants=3)
    dataset = bench.index()
    expected = {sample_id(*item, v) for item in items(40) for v in range(3) if not is_held_out(item[0], HELD_OUT)}
    assert bench.trained(dataset) == expected
    held_out = sum(is_held_out(image, HELD_OUT) for image, _ in items(40))
    assert (dataset.images, dataset.samples, dataset.held_out) == (40, 120, held_out)
    bench.group("000", bench.shard(items(40), variants=3), variants=2)
    fewer = bench.index()
    assert bench.trained(fewer) == {sample for sample in expected if sample.variant < 2}
    assert len(fewer.shards[0].tombstones) == 40


def test_every_caption_of_an_image_is_a_sample(bench: Workbench) -> None:
    image = next(image for image, _ in items(9) if not is_held_out(image, HELD_OUT))
    captions = (Caption("one", "x"), Caption("two", "y"))
    write_captions(bench.captions, "000", [CaptionRecord(image, "a.png", 1, captions, "v", 8, 8)], [])
    bench.group("000", bench.shard([(image, "one")]))
    with pytest.raises(DataError, match="1 of 2"):
        bench.index()
    bench.group("000", bench.shard([(image, "one")]), bench.shard([(image, "two")]))
    assert bench.trained(bench.index()) == {sample_id(image, "one"), sample_id(image, "two")}


def test_held_out_share_is_settled_here(bench: Workbench) -> None:
    bench.caption("000", items(40))
    bench.group("000", bench.shard(items(40)))
    none, some = bench.index(held_out=0.0), bench.index(held_out=0.5)
    assert (none.held_out, none.shards[0].held_out) == (0, ())
    assert bench.trained(some) == pairs(items(40), 0.5)
    assert none.digest != some.digest


def test_group_that_is_not_encoded_stops_the_step(bench: Workbench) -> None:
    bench.caption("000", items(5))
    with pytest.raises(DataError, match=r"\b000\b"):
        bench.index()
    assert read_dataset(bench.dataset, SET) is None


def test_live_image_in_no_shard_stops_the_step(bench: Workbench) -> None:
    bench.caption("000", items(5))
    bench.group("000", bench.shard(items(4)))
    with pytest.raises(DataError, match="1 of 5 "):
        bench.index()


def test_lost_shard_is_reported_and_skipped_when_nobody_needs_it(
    bench: Workbench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.caption("000", items(5))
    lost = bench.shard(items(5))
    bench.group("000", lost)
    bench.index()
    bench.dataset.write(tar_key(lost), b"cut off")
    with pytest.raises(DataError, match="5 of 5"):
        bench.index()
    bench.caption("000", items(3, start=50))
    kept = bench.shard(items(3, start=50))
    bench.group("000", kept)
    capsys.readouterr()
    assert [shard.name for shard in bench.index(held_out=0.0).shards] == [kept]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["shard"] for event in events if event["event"] == "shard-lost"] == [lost]


def test_dataset_with_nothing_to_train_on_is_rejected(bench: Workbench) -> None:
    bench.caption("000", [], [Rejection("a.png", "caption", "caption-empty", "")])
    bench.group("000")
    with pytest.raises(DataError, match=r"\b0 images.*caption-empty"):
        bench.index()
    only = next(item for item in items(100) if is_held_out(item[0], HELD_OUT))
    bench.caption("000", [only])
    bench.group("000", bench.shard([only]))
    with pytest.raises(DataError, match=r"index\.held_out"):
        bench.index()
    assert read_dataset(bench.dataset, SET) is None


def test_command_prints_the_result_and_maps_errors(bench: Workbench, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--workdir", str(bench.root), "--source-id", SOURCE, "--encoding-key", KEY, "--groups", "000"]
    arguments += ["--caption-set", SET]
    assert main(arguments) == 65
    assert "caption step" in capsys.readouterr().err
    assert main([*arguments, "--set", "held_out=1.5"]) == 78
    assert "held_out" in capsys.readouterr().err
    bench.caption("000", items(5))
    bench.group("000", bench.shard(items(5)))
    assert main([*arguments, "--set", "held_out=0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 5
