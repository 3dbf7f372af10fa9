"""The records that steps hand to one another: the same bytes in whatever order they come, and no other format's."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import permutations

import pytest

from components.errors import DataError
from components.image.partition import ancestors, group_names, group_of, groups_of_lane
from components.image.records import (
    FORMAT,
    Caption,
    CaptionRecord,
    ImageRecord,
    Manifest,
    Rejection,
    parse_caption_record,
    read_accepted,
    read_caption_rejections,
    read_captions,
    read_images,
    read_manifest,
    read_rejections,
    write_captions,
    write_images,
    write_manifest,
    write_rejections,
)
from tests.stores.memory import MemoryStorage

REJECTIONS = [
    Rejection("a.png", "clean", "blurred", "1 below 2"),
    Rejection("a.png", "ingest", "duplicate", "of b.png"),
    Rejection("a.png", "ingest", "empty", "0 bytes"),
    Rejection("b.png", "caption", "caption-empty", "0 characters"),
]


SORTED = [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


def captioned(sha256: str, name: str = "n.png") -> CaptionRecord:
    return CaptionRecord(sha256, name, 1, (Caption("x", "none"),), "v", 8, 8)


def test_rejections_are_the_same_bytes_in_whatever_order_they_come() -> None:
    work = MemoryStorage("manifest-rejections")
    written = set()
    for order in permutations(REJECTIONS):
        write_rejections(work, "rejected.jsonl", order)
        written.add(work.read("rejected.jsonl"))
    assert len(written) == 1
    assert read_rejections(work, "rejected.jsonl") == REJECTIONS


def test_where_nothing_was_rejected_there_are_no_rejections() -> None:
    assert read_rejections(MemoryStorage("manifest-none"), "rejected.jsonl") == []


def test_an_image_without_captions_is_no_record() -> None:
    values = {**asdict(captioned("a")), "captions": []}
    with pytest.raises(DataError, match=r"g\.jsonl: image a has no captions"):
        parse_caption_record(values, "g.jsonl")


def test_captions_and_rejections_come_back_as_they_were_written() -> None:
    work = MemoryStorage("manifest-round-trip")
    record = replace(captioned("a"), captions=(Caption("x", "none"), Caption("y", "model:z")), verdicts={"blur": "9"})
    write_captions(work, "g", [record], REJECTIONS[:1])
    assert read_captions(work, "g") == [record]
    assert read_caption_rejections(work, "g") == REJECTIONS[:1]


def test_records_are_sorted_by_content_and_then_by_name() -> None:
    work = MemoryStorage("manifest-order")
    write_captions(work, "g", [captioned(digest, name) for digest in "ba" for name in "dc"], [])
    assert [(one.sha256, one.name) for one in read_captions(work, "g")] == [
        ("a", "c"),
        ("a", "d"),
        ("b", "c"),
        ("b", "d"),
    ]
    images = [ImageRecord(name, digest, 1, 8, 8, "PNG") for digest in "ba" for name in "dc"]
    assert write_images(work, "s", "g", images) == write_images(work, "s", "g", reversed(images))
    assert [(one.sha256, one.name) for one in read_images(work, "s", "g")] == [
        ("a", "c"),
        ("a", "d"),
        ("b", "c"),
        ("b", "d"),
    ]


@pytest.mark.parametrize("spoilt", [{"format": FORMAT + 1}, {"format": str(FORMAT)}, {"format": None}, {"more": 1}])
def test_a_manifest_of_another_format_is_not_read(spoilt: dict[str, object]) -> None:
    work = MemoryStorage("manifest-format")
    manifest = Manifest("file:///images", 3, 1, ("g0", "g1"), "digest", "listing")
    write_manifest(work, "s", manifest)
    assert read_manifest(work, "s") == manifest
    work.write_json("ingest/s/manifest.json", {**work.read_json("ingest/s/manifest.json"), **spoilt})
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(work, "s")


def test_what_the_clean_step_left_out_is_not_accepted() -> None:
    work = MemoryStorage("manifest-accepted")
    write_captions(
        work, "g", [CaptionRecord(digest, "n", 1, (Caption("x", "none"),), "v", 8, 8) for digest in "abc"], []
    )
    write_rejections(work, "g.clean.jsonl", [Rejection("n.png", "clean", "blurred", "", sha256="b")])
    assert [record.sha256 for record in read_accepted(work, "g")] == ["a", "c"]


def test_groups_are_the_leading_bits_and_each_lane_has_its_share() -> None:
    digest = f"{0b1011 << 60:016x}" + "0" * 48
    assert [group_of(digest, bits) for bits in range(5)] == ["g", "g1", "g10", "g101", "g1011"]
    assert ancestors("g1011") == ("g101", "g10", "g1", "g")
    assert ancestors("g") == ()
    names = group_names(3)
    assert (names[0], names[5], len(names)) == ("g000", "g101", 8)
    lanes = [groups_of_lane(names, lane, 3) for lane in ("00", "01", "02")]
    assert sorted(name for lane in lanes for name in lane) == sorted(names)
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
