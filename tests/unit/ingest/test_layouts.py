"""Ingest reads what people have: captions beside images, metadata of imagefolders, tars, licences."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError, DataError
from components.image.partition import ancestors, group_names, group_of, groups_of_lane, lane_names
from components.image.records import Manifest, read_ingest_rejections
from components.image.sources import open_source
from components.ingest.config import IngestConfig
from components.ingest.groups import group_bits
from tests.images import image_bytes
from tests.photos import Photos


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "photos")


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


@pytest.mark.parametrize("settings", [{"allowed_licenses": 7}, {"unknown_license": "ask"}, {"group_images": 0}])
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
    folder, place = (f"ingest/{name}" for name in (photos.run()["source_id"], open_source(str(photos.root)).id))
    before = sorted(entry.key for entry in photos.work.list())
    for key in (f"{folder}/group-g0.jsonl", f"{place}/known/new-00000.jsonl"):
        photos.work.write(key, b"")
    photos.run()
    assert sorted(entry.key for entry in photos.work.list()) == before
