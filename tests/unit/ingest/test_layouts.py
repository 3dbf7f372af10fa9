"""Ingest reads what people have: captions beside images, metadata of imagefolders, tars, licences."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.errors import ConfigError, DataError
from components.image.records import (
    ImageRecord,
    Manifest,
    Rejection,
    ancestors,
    group_names,
    group_of,
    groups_of_lane,
    lane_names,
    read_images,
    read_ingest_rejections,
    read_manifest,
)
from components.ingest import metadata_files
from components.ingest.config import IngestConfig
from components.ingest.groups import group_bits
from components.ingest.ingest import ingest
from components.ingest.metadata_files import MetadataLine, read_metadata
from components.progress import Progress
from components.storage.base import Storage
from tests.stores.memory import MemoryStorage


def image_bytes(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


class Photos:
    """A folder of images, and what ingest makes of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work: Storage = MemoryStorage(f"layouts-{root.parent.name}")
        self.log = io.StringIO()

    def put(self, name: str, data: bytes | str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def put_images(self, *names: str) -> None:
        for number, name in enumerate(names):
            self.put(name, image_bytes(number))

    def run(self, **settings: Any) -> dict[str, Any]:
        config = IngestConfig.parse({"source": str(self.root), **settings})
        self.result = ingest(config, self.work, Progress(self.log))
        return self.result

    def images(self) -> dict[str, ImageRecord]:
        source_id = self.result["source_id"]
        groups = read_manifest(self.work, source_id).groups
        return {image.name: image for group in groups for image in read_images(self.work, source_id, group)}

    def captions(self) -> dict[str, str | None]:
        """The words of each image, or the name of the file that has them."""
        captions: dict[str, str | None] = {}
        for name, image in sorted(self.images().items()):
            caption = image.caption
            captions[name] = None if caption is None else caption.name if caption.text is None else caption.text
        return captions

    def rejected(self) -> dict[str, str]:
        rejections = read_ingest_rejections(self.work, self.result["source_id"])
        assert all(rejection.detail for rejection in rejections)
        return {rejection.name: rejection.reason for rejection in rejections}

    def layout(self) -> str:
        events = map(json.loads, self.log.getvalue().splitlines())
        return [str(event["layout"]) for event in events if event["event"] == "layout"][-1]


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
    rows = list(read_metadata("metadata.csv", lambda start, length: text[start : start + length]))
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

    rows = list(read_metadata("sub/metadata.jsonl", read))
    assert largest == 100
    assert [one.image for one in rows if isinstance(one, MetadataLine)] == [f"sub/{i}.png" for i in range(20)]
    assert [one.name for one in rows if isinstance(one, Rejection)] == ["sub/metadata.jsonl:8"]


# Which layout it is.


def test_the_layout_follows_from_what_is_there(photos: Photos) -> None:
    photos.put("a.tar", b"")
    photos.put_images("b.png")
    photos.run()
    assert (photos.layout(), list(photos.images())) == ("folder", ["b.png"])
    photos.put("metadata.csv", "file_name,text\nb.png,words\n")
    photos.run()
    assert (photos.layout(), photos.captions()) == ("imagefolder", {"b.png": "words"})


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("imagefolder", r"metadata\.jsonl.*ingest\.layout"), ("webdataset", r"\.tar.*ingest\.layout")],
)
def test_a_layout_that_is_not_there_is_a_clear_error(photos: Photos, layout: str, expected: str) -> None:
    photos.put_images("a.png")
    with pytest.raises(DataError, match=expected):
        photos.run(layout=layout)


# Licences.


LICENSES = dict(zip("abcdef", ("CC-BY-4.0", "cc by 4.0", "CC-BY-NC-4.0", 4, None, "?"), strict=True))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, "abcdef"),
        ({"allowed_licenses": ["cc-by-4.0"]}, "ab"),
        ({"allowed_licenses": ["cc-by-4.0"], "unknown_license": "keep"}, "abef"),
        ({"allowed_licenses": [4, "CC_BY_NC-4.0"]}, "cd"),
        ({"unknown_license": "reject"}, "abcd"),
    ],
)
def test_only_images_of_allowed_licences_are_kept(photos: Photos, settings: dict[str, Any], kept: str) -> None:
    photos.put_images(*(f"{name}.png" for name in LICENSES))
    lines = [json.dumps({"file_name": f"{name}.png", "license": license}) for name, license in LICENSES.items()]
    photos.put("metadata.jsonl", "\n".join(lines))
    photos.run(**settings)
    assert "".join(sorted(name[0] for name in photos.images())) == kept
    assert set(photos.rejected().values()) <= {"license-not-allowed", "license-unknown"}
    rejections = {one.name: one for one in read_ingest_rejections(photos.work, photos.result["source_id"])}
    if settings.get("allowed_licenses") == ["cc-by-4.0"]:
        assert rejections["c.png"].reason == "license-not-allowed"
        assert "'CC-BY-NC-4.0'" in rejections["c.png"].detail
        assert all(part in rejections["c.png"].detail for part in ("cc-by-4.0", "allowed_licenses"))
        assert rejections["c.png"].sha256 is not None
    assert photos.run(**settings)["read"] == 0


def test_of_equal_images_one_with_an_allowed_licence_is_kept(photos: Photos) -> None:
    for name in ("a.png", "b.png", "c.png"):
        photos.put(name, image_bytes(1))
    photos.put("b.json", json.dumps({"license": "MIT"}))
    photos.put("c.json", json.dumps({"license": "MIT"}))
    photos.run(allowed_licenses=["mit"])
    assert list(photos.images()) == ["b.png"]
    assert photos.rejected() == {"a.png": "license-unknown", "c.png": "duplicate"}


@pytest.mark.parametrize("settings", [{"allowed_licenses": "MIT"}, {"unknown_license": "ask"}, {"group_images": 0}])
def test_invalid_settings_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        IngestConfig.parse({"source": "photos", **settings})


# Groups and lanes.


def test_groups_are_bounded_and_split_only() -> None:
    config = IngestConfig(source="photos", group_images=100)

    def bits(images: int, before: int | None = None, lanes: int = 1) -> int:
        last = None if before is None else Manifest("photos", 1, 0, group_names(before), "")
        return group_bits(config.model_copy(update={"lanes": lanes}), images, last)

    assert [bits(images) for images in (0, 1, 100, 101, 200, 201, 2 * 10**9)] == [0, 0, 0, 1, 1, 2, 25]
    assert [bits(1, lanes=lanes) for lanes in (1, 2, 3, 50)] == [0, 1, 2, 6]
    assert (bits(50, before=3), bits(2000, before=3)) == (3, 5)


def test_a_group_that_splits_is_the_beginning_of_its_parts_names() -> None:
    for digest in ("0" * 64, "f" * 64, "8" + "0" * 63, "6b" + "7" * 62):
        assert group_of(digest, 0) == "g"
        for bits in range(1, 20):
            group = group_of(digest, bits)
            assert group in group_names(bits) if bits < 8 else len(group) == bits + 1
            assert ancestors(group) == tuple(group_of(digest, fewer) for fewer in range(bits - 1, -1, -1))
    assert ancestors("g") == ()


def test_lanes_share_all_groups_evenly() -> None:
    groups = group_names(6)
    shares = [groups_of_lane(groups, lane, 50) for lane in lane_names(50)]
    assert sorted(group for share in shares for group in share) == sorted(groups)
    assert {len(share) for share in shares} == {1, 2}
    assert lane_names(3) == ("00", "01", "02")


def test_a_growing_source_splits_its_groups(photos: Photos) -> None:
    photos.put_images(*(f"{number:02d}.png" for number in range(9)))
    assert photos.run(group_images=10)["groups"] == 1
    photos.put_images(*(f"{number:02d}.png" for number in range(12)))
    again = photos.run(group_images=10)
    assert (again["groups"], again["images"], again["read"]) == (2, 12, 12)
    for number in range(8):
        (photos.root / f"{number:02d}.png").unlink()
    last = photos.run(group_images=10)
    assert (last["groups"], last["images"], last["gone"]) == (2, 4, 8)


# What is new, changed or gone.


def test_new_changed_and_gone_images_are_counted(photos: Photos) -> None:
    photos.put_images("a.png", "b.png", "c.png", "d.png")
    photos.run()
    kept = (photos.root / "a.png").stat()
    photos.put("b.png", image_bytes(50))
    photos.put("e.png", image_bytes(51))
    (photos.root / "c.png").unlink()
    os.utime(photos.root / "a.png", ns=(kept.st_atime_ns, kept.st_mtime_ns + 10**9))  # touched, the same bytes
    result = photos.run()
    assert {name: result[name] for name in ("read", "new", "changed", "gone")} == {
        "read": 3,
        "new": 1,
        "changed": 1,
        "gone": 1,
    }
    event = json.loads(photos.log.getvalue().splitlines()[-1])
    assert event == {"event": "compared", "read": 3, "new": 1, "changed": 1, "gone": 1}


def test_an_unchanged_source_is_only_listed(photos: Photos) -> None:
    photos.put_images("a.png", "b.png")
    first = photos.run()
    written = {entry.key: photos.work.read(entry.key) for entry in photos.work.list()}
    # Were it read, it would be noticed: this is no memory of anything.
    key = next(key for key in written if "/known/" in key)
    photos.work.write(key, b"{")
    assert photos.run() == {**first, "read": 0, "new": 0}
    assert photos.work.read(key) == b"{"


def test_what_may_pass_is_tried_each_time(photos: Photos) -> None:
    photos.put_images("a.png")
    (photos.root / "b.png").symlink_to("later.bin")
    assert photos.run()["images"] == 1
    assert photos.rejected() == {"b.png": "unreadable"}
    photos.put("later.bin", image_bytes(5))
    assert photos.run()["images"] == 2


def test_leftovers_of_a_run_that_was_killed_at_its_very_end_are_removed(photos: Photos) -> None:
    photos.put_images("a.png")
    folder = f"ingest/{photos.run()['source_id']}"
    before = sorted(entry.key for entry in photos.work.list())
    for key in (f"{folder}/group-g0.jsonl", f"{folder}/known/new-00000.jsonl"):
        photos.work.write(key, b"")
    photos.run()
    assert sorted(entry.key for entry in photos.work.list()) == before


def test_a_line_without_an_end_takes_no_more_memory_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_files, "PIECE", 1 << 20)

    def endless(start: int, length: int) -> bytes:
        return b"x" * min(length, (64 << 20) - start)

    tracemalloc.start()
    (rejection,) = read_metadata("metadata.jsonl", endless)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(rejection, Rejection)
    assert "more than 1048576 bytes" in rejection.detail
    assert most < 8 << 20
