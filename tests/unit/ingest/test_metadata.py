"""Captions, licences and origins come from JSON beside the images, metadata.jsonl and metadata.csv."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from components.image.records import Rejection
from components.ingest import metadata_files
from components.ingest.config import IngestConfig
from components.ingest.metadata_files import MetadataLine, read_metadata
from tests.photos import Photos

FIELDS = IngestConfig(source="any").caption_fields


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "photos")


# Words beside images.


def test_json_beside_an_image_has_caption_licence_and_source(photos: Photos) -> None:
    photos.put_images("a.png", "sub/b.png", "c.png", "d.png", "e.png")
    photos.put("a.json", json.dumps({"Caption": "of a", "url": "http://a", "LICENSE": "CC0-1.0"}))
    photos.put("sub/b.json", json.dumps({"text": "of b", "license": 4}))
    photos.put("sub/b.txt", "the text file counts")
    photos.put("c.json", json.dumps({"caption": ["first", "second"], "license": "?"}))
    photos.put("d.json", "{broken")
    photos.put("e.json", json.dumps(["no", "object"]))
    photos.put("statistics.json", "{also broken, but beside no image")
    photos.run()
    assert photos.layout() == "folder"
    assert photos.captions() == {
        "a.png": "of a", "c.png": "first", "d.png": None, "e.png": None, "sub/b.png": "sub/b.txt"
    }  # fmt: skip
    origins = {name: (image.license, image.source) for name, image in photos.images().items()}
    assert origins["a.png"] == ("CC0-1.0", "http://a")
    assert origins["sub/b.png"] == ("4", None)
    assert origins["c.png"] == (None, None)
    assert photos.rejected() == {"d.json": "metadata-broken", "e.json": "metadata-broken"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "a cat"}, "a cat"),
        ({"Description": "a cat"}, "a cat"),
        ({"alt_text": "a cat", "title": "IMG_1"}, "a cat"),
        ({"prompt": "generated", "caption": "a cat"}, "a cat"),
        ({"caption": "  ", "prompt": "a cat"}, "a cat"),
        ({"caption": None, "prompt": "a cat"}, "a cat"),
        ({"caption": 7, "prompt": "a cat"}, "a cat"),
        ({"captions": ["a cat", "a pet"]}, "a cat"),
        ({"captions": [None, "a cat"]}, "a cat"),
        ({"tags": ["cat", "pet"]}, "cat, pet"),
        ({"tag_string": "cat pet"}, "cat pet"),
        ({"caption": ""}, ""),
        ({"legend": "a cat"}, None),
    ],
    ids=str,
)
def test_a_caption_may_have_many_names(photos: Photos, values: dict[str, Any], expected: str | None) -> None:
    photos.put_images("a.png", "b.png")
    photos.put("a.json", json.dumps(values))
    photos.put("metadata.jsonl", json.dumps({"image_path": "b.png", **values}))
    photos.run()
    assert photos.captions() == {"a.png": expected, "b.png": expected}
    assert photos.rejected() == {}


@pytest.mark.parametrize("value", [7, {"en": "a cat"}, True], ids=str)
def test_a_caption_that_is_no_text_is_named(photos: Photos, value: object) -> None:
    photos.put_images("a.png")
    photos.put("a.json", json.dumps({"caption": value}))
    photos.run()
    assert photos.captions() == {"a.png": None}
    assert photos.rejected() == {"a.json": "metadata-broken"}


def test_other_names_of_captions_take_effect_at_once(photos: Photos) -> None:
    photos.put_images("a.png")
    photos.put("a.json", json.dumps({"legend": "a cat", "title": "IMG_1"}))
    photos.run()
    assert photos.captions() == {"a.png": "IMG_1"}
    photos.run(caption_fields=["Legend"])
    assert photos.captions() == {"a.png": "a cat"}


def test_metadata_in_another_encoding_are_one_rejection(photos: Photos) -> None:
    photos.put_images("a.png", "b.png")
    photos.put("metadata.csv", "file_name,text\na.png,a cat\nb.png,a dog\n".encode("utf-16"))
    photos.run()
    assert photos.rejected() == {"metadata.csv": "metadata-broken"}
    assert sorted(photos.images()) == ["a.png", "b.png"]


def test_json_is_read_again_only_when_it_changes(photos: Photos) -> None:
    photos.put_images("a.png", "b.png")
    photos.put("a.json", json.dumps({"caption": "one"}))
    photos.put("b.json", json.dumps({"caption": "two"}))
    first = photos.run()
    assert (first["read"], photos.run()["read"]) == (4, 0)
    photos.put("a.json", json.dumps({"caption": "three", "license": "MIT"}))
    again = photos.run()
    assert (again["read"], again["new"], again["changed"], again["digest"] == first["digest"]) == (1, 0, 0, False)
    assert photos.captions() == {"a.png": "three", "b.png": "two"}


def test_words_are_made_whole_and_not_endless(photos: Photos) -> None:
    photos.put_images("a.png", "b.png")
    photos.put("a.json", '{"caption": "pair \\ud83d\\udcf7 lone \\ud83d.", "url": "\\udcff"}')
    photos.put("b.json", json.dumps({"caption": "x" * 200_000, "url": "y" * 5000}))
    photos.run()
    assert photos.captions()["a.png"] == "pair \U0001f4f7 lone \ufffd."
    assert len(photos.captions()["b.png"] or "") == 100_001  # one more than any setting takes: the caption step says so
    assert len(photos.images()["b.png"].source or "") == 2000


# Imagefolders.


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_apply_to_the_images_below_them(photos: Photos, kind: str) -> None:
    photos.put_images("a.png", "sub/b.png", "sub/c.png", "other.png")
    rows = [
        {"file_name": "a.png", "text": "of a", "license": "cc-by-4.0", "url": "http://a"},
        {"file_name": "./sub/b.png", "text": 'of b, "quoted"', "license": "", "url": ""},
        {"file_name": "sub/c.png", "text": "from above", "license": "", "url": ""},
    ]
    columns = list(rows[0])
    if kind == "jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        lines = [",".join(columns), *(",".join('"' + row[c].replace('"', '""') + '"' for c in columns) for row in rows)]
    photos.put(f"metadata.{kind}", "\n".join(lines) + "\r\n")
    photos.put("sub/metadata.jsonl", json.dumps({"file_name": "c.png", "caption": "from beside"}))
    photos.put("a.txt", "metadata count before files beside")
    photos.put("other.txt", "no metadata")
    photos.run()
    assert photos.layout() == "imagefolder"
    assert photos.captions() == {
        "a.png": "of a",
        "other.png": "other.txt",
        "sub/b.png": 'of b, "quoted"',
        "sub/c.png": "from beside",
    }
    image = photos.images()["a.png"]
    assert (image.license, image.source) == ("cc-by-4.0", "http://a")
    assert image.caption is not None
    assert image.caption.name == f"metadata.{kind}:a.png"
    assert photos.rejected() == {}
    photos.run(layout="folder")
    assert photos.captions()["a.png"] == "a.txt"


def test_lines_that_cannot_be_used_are_rejected_one_by_one(photos: Photos) -> None:
    photos.put_images("a.png", "b.png")
    photos.put("elsewhere.txt", "x")
    lines = [
        '{"file_name": "a.png", "text": "of a"}',
        '{"file_name": "gone.png", "text": "x"}',
        '{"file_name": "../photos/a.png", "text": "x"}',
        '{"file_name": "/etc/passwd", "text": "x"}',
        '{"file_name": "sub/../../a.png", "text": "x"}',
        '{"file_name": 7}',
        '{"text": "no name"}',
        "{broken",
        "[1]",
        "",
        '{"file_name": "a.png", "text": "again"}',
        '{"file_name": "elsewhere.txt", "text": "no image"}',
        "[" * 100_000,
        '{"file_name": "b.png", "text": "of b"}',
    ]
    photos.put("metadata.jsonl", b"\n".join([*(line.encode() for line in lines), b'{"file_name": "\xff"}']))
    photos.run()
    assert photos.captions() == {"a.png": "of a", "b.png": "of b"}
    broken, outside, missing = "metadata-broken", "metadata-outside", "metadata-missing-file"
    reasons = {2: missing, 3: outside, 4: outside, 5: outside, 6: broken, 7: broken, 8: broken, 9: broken}
    reasons |= {11: "metadata-repeated", 12: missing, 13: broken, 15: broken}
    assert photos.rejected() == {f"metadata.jsonl:{line}": reason for line, reason in reasons.items()}


@pytest.mark.parametrize(
    ("text", "captions", "reasons"),
    [
        (b"name,text\na.png,x\n", {}, {1: "metadata-broken"}),
        (b"", {}, {}),
        (b"file_name,text\na.png\nb.png,of b\n", {"b.png": "of b"}, {2: "metadata-broken"}),
        (b"\xef\xbb\xbffile_name,text\nb.png,of b\n", {"b.png": "of b"}, {}),
        (b'file_name,text\nb.png,"two\nlines"\n', {"b.png": "two\nlines"}, {}),
        (b"file_name,text\na.png,\xff\nb.png,of b\n", {"b.png": "of b"}, {2: "metadata-broken"}),
        (b'file_name,text\na.png,"never closed\n' + b"x\n" * 200_000, {}, {65541: "metadata-broken"}),
    ],
)
def test_a_broken_csv_is_rejected_line_by_line(text: bytes, captions: dict[str, str], reasons: dict[int, str]) -> None:
    rows = list(read_metadata("metadata.csv", lambda start, length: text[start : start + length], FIELDS))
    accepted = {one.image: one.fields.text for one in rows if isinstance(one, MetadataLine)}
    rejected = [one for one in rows if isinstance(one, Rejection)]
    assert accepted == captions
    for line, reason in reasons.items():
        assert f"metadata.csv:{line}" in {one.name for one in rejected}, rejected[:3]
        assert {one.reason for one in rejected} == {reason}
    assert bool(rejected) == bool(reasons)


def test_metadata_are_read_in_pieces_and_an_endless_line_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_files, "PIECE", 100)
    monkeypatch.setattr(metadata_files, "LONGEST_LINE", 300)
    lines = [json.dumps({"file_name": f"{i}.png", "text": "é" * i}) for i in range(20)]
    lines.insert(7, json.dumps({"file_name": "long.png", "text": "x" * 5000}))
    data = "\n".join(lines).encode()
    largest = 0

    def read(start: int, length: int) -> bytes:
        nonlocal largest
        largest = max(largest, length)
        return data[start : start + length]

    rows = list(read_metadata("sub/metadata.jsonl", read, FIELDS))
    assert largest == 100
    assert [one.image for one in rows if isinstance(one, MetadataLine)] == [f"sub/{i}.png" for i in range(20)]
    assert [one.name for one in rows if isinstance(one, Rejection)] == ["sub/metadata.jsonl:8"]


def test_a_line_without_an_end_takes_no_more_memory_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_files, "PIECE", 1 << 20)

    def endless(start: int, length: int) -> bytes:
        return b"x" * min(length, (64 << 20) - start)

    tracemalloc.start()
    (rejection,) = read_metadata("metadata.jsonl", endless, FIELDS)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(rejection, Rejection)
    assert "more than 1048576 bytes" in rejection.detail
    assert most < 8 << 20
