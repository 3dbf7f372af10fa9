"""Ingest reads each file once, takes each content once, and writes the same bytes for the same input."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.digests import digest, sha256
from components.errors import ConfigError, DataError, StorageError
from components.image.records import ImageRecord, read_images, read_ingest_rejections, read_manifest
from components.image.sources import open_source
from components.ingest.__main__ import main
from components.ingest.config import IngestConfig
from components.ingest.digits import write_digits
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage


def image_bytes(seed: int, side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def photos(root: Path, count: int = 6) -> Path:
    for number in range(count):
        put(root / f"{number:02d}.png", image_bytes(number))
    return root


def run(source: Path | str, workdir: Storage, **settings: Any) -> dict[str, Any]:
    return ingest(
        IngestConfig.parse({"source": str(source), "max_rejected": None, **settings}), workdir, Progress(io.StringIO())
    )


def groups(workdir: Storage, result: dict[str, Any]) -> tuple[str, ...]:
    return read_manifest(workdir, result["source_id"]).groups


def images(workdir: Storage, result: dict[str, Any]) -> dict[str, ImageRecord]:
    records = [image for group in groups(workdir, result) for image in read_images(workdir, result["source_id"], group)]
    return {image.name: image for image in records}


def contents(workdir: Storage) -> dict[str, bytes]:
    return {entry.key: workdir.read(entry.key) for entry in workdir.list()}


def test_each_image_is_written_down_with_what_it_is(tmp_path: Path) -> None:
    data = image_bytes(1, side=20)
    put(tmp_path / "photos/sub/a.png", data)
    put(tmp_path / "photos/sub/a.txt", b"a cat")
    work = MemoryStorage("ingest-facts")
    result = run(tmp_path / "photos", work)
    assert {key: result[key] for key in ("groups", "images", "rejected", "read")} == {
        "groups": 1,
        "images": 1,
        "rejected": 0,
        "read": 1,
    }
    image = images(work, result)["sub/a.png"]
    assert (image.sha256, image.bytes, image.width, image.height, image.format) == (
        sha256(data),
        len(data),
        20,
        20,
        "PNG",
    )
    assert image.caption is not None
    assert (image.caption.name, image.caption.bytes) == ("sub/a.txt", 5)
    manifest = read_manifest(work, result["source_id"])
    assert (manifest.source, manifest.images, manifest.digest) == (str(tmp_path / "photos"), 1, result["digest"])


def test_only_new_and_changed_files_are_read(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("ingest-cached")
    first = run(root, work)
    assert first["read"] == 6
    assert run(root, work) == {**first, "read": 0, "new": 0}
    put(root / "new.png", image_bytes(100))
    assert run(root, work)["read"] == 1
    kept = (root / "00.png").stat()
    changed = bytearray((root / "00.png").read_bytes())
    changed[-1] ^= 1  # same size, and the time is put back
    put(root / "00.png", bytes(changed))
    os.utime(root / "00.png", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    again = run(root, work)
    assert again["read"] == 1
    assert images(work, again)["00.png"].sha256 == sha256(bytes(changed))
    (root / "01.png").unlink()
    last = run(root, work)
    assert (last["read"], last["images"]) == (0, 6)
    assert last["digest"] != again["digest"]


def test_rejected_files_are_not_read_again(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("ingest-cached-bad")
    put(root / "bad.jpg", b"words")
    assert run(root, work)["rejected"] == 1
    again = run(root, work)
    assert (again["read"], again["rejected"]) == (0, 1)


def test_new_limits_apply_without_reading(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("ingest-limits")
    put(root / "large.png", image_bytes(7, side=40))
    assert run(root, work)["images"] == 7
    strict = run(root, work, limits={"min_side": 32})
    assert (strict["read"], strict["images"], strict["rejected"]) == (0, 1, 6)
    assert run(root, work)["images"] == 7


def test_the_same_input_makes_the_same_bytes_on_any_storage(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    put(root / "bad.jpg", b"words")
    workdirs = [open_storage(str(tmp_path / "one")), open_storage(str(tmp_path / "two")), MemoryStorage("ingest-same")]
    assert len({digest(run(root, work, lanes=3, readers=n + 1)) for n, work in enumerate(workdirs)}) == 1
    assert contents(workdirs[0]) == contents(workdirs[1]) == contents(workdirs[2])


def test_groups_divide_the_images_by_content(tmp_path: Path) -> None:
    work = MemoryStorage("ingest-groups")
    result = run(photos(tmp_path / "photos", 40), work, lanes=4)
    members = {group: read_images(work, result["source_id"], group) for group in groups(work, result)}
    assert list(members) == ["g00", "g01", "g10", "g11"]
    assert sum(map(len, members.values())) == 40
    assert sum(len(images) > 0 for images in members.values()) >= 2
    for group, records in members.items():
        assert all(f"g{int(image.sha256[0], 16) >> 2:02b}" == group for image in records)
        assert [image.sha256 for image in records] == sorted(image.sha256 for image in records)


def test_groups_of_an_earlier_partition_are_removed(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("ingest-regrouped")
    run(root, work, group_images=4)
    result = run(photos(tmp_path / "photos", 9), work, group_images=4)
    kept = [entry.key.rpartition("/")[2] for entry in work.list() if "/group-" in entry.key]
    assert kept == ["group-g00.jsonl", "group-g01.jsonl", "group-g10.jsonl", "group-g11.jsonl"]
    assert len(images(work, result)) == 9


def test_of_duplicates_the_first_name_stays(tmp_path: Path) -> None:
    root, work = tmp_path / "photos", MemoryStorage("ingest-duplicates")
    for name in ("b.png", "a/z.png", "c.jpg"):
        put(root / name, image_bytes(1))
    result = run(root, work, lanes=3)
    assert list(images(work, result)) == ["a/z.png"]
    rejections = read_ingest_rejections(work, result["source_id"])
    assert [(r.name, r.reason, r.detail) for r in rejections] == [
        ("b.png", "duplicate", "duplicate of a/z.png"),
        ("c.jpg", "duplicate", "duplicate of a/z.png"),
    ]
    put(root / "Z.png", image_bytes(1))  # new, and its name sorts before the others
    assert list(images(work, run(root, work, lanes=3))) == ["Z.png"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.txt"], "a.txt"),
        (["a.caption"], "a.caption"),
        (["a.TXT"], "a.TXT"),
        (["a.caption", "a.txt"], "a.txt"),
        (["a.png.txt"], "a.png.txt"),
        (["a.png.txt", "a.caption"], "a.caption"),
        (["b.txt", "sub/a.txt", "a.md.txt", "a.json"], None),
    ],
)
def test_the_caption_file_is_the_one_of_the_same_name(tmp_path: Path, files: list[str], expected: str | None) -> None:
    work = MemoryStorage(f"ingest-sidecar-{files}")
    put(tmp_path / "a.png", image_bytes(1))
    for name in files:
        put(tmp_path / name, b"words")
    caption = images(work, run(tmp_path, work))["a.png"].caption
    assert (caption and caption.name) == expected


def test_the_digest_tells_a_changed_caption_file(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("ingest-caption-digest")
    put(root / "00.txt", b"a cat")
    first = run(root, work)
    put(root / "00.txt", b"a dog")
    second = run(root, work)
    assert (second["read"], second["digest"] == first["digest"]) == (0, False)


def test_capitals_in_endings_do_not_matter_and_other_files_do_not_count(tmp_path: Path) -> None:
    work = MemoryStorage("ingest-endings")
    for name in ("A.PNG", "notes.md", "b.psd"):
        put(tmp_path / name, image_bytes(1))
    assert list(images(work, run(tmp_path, work))) == ["A.PNG"]
    assert list(images(work, run(tmp_path, work, extensions=[".psd"]))) == ["b.psd"]


def test_what_was_read_before_a_crash_is_not_read_again(tmp_path: Path) -> None:
    class Full(MemoryStorage):
        def write(self, key: str, data: bytes) -> None:
            if "group-" in key:
                raise StorageError("no space left")
            super().write(key, data)

    root = photos(tmp_path / "photos")
    with pytest.raises(StorageError, match="no space"):
        run(root, Full("ingest-crash"))
    work = MemoryStorage("ingest-crash")
    assert not any(entry.key.endswith("manifest.json") for entry in work.list())
    result = run(root, work)
    assert (result["read"], result["images"]) == (0, 6)


@pytest.mark.parametrize("broken", [b"", b"{", b'{"format": 2}\n{"name": "00.png"}\n', b'{"format": 99}\n', b"[]\n"])
def test_a_broken_cache_is_read_anew(tmp_path: Path, broken: bytes) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage(f"ingest-broken-{broken!r}")
    first = run(root, work)
    work.write(f"ingest/{open_source(str(root)).id}/known/00000.jsonl", broken)
    work.delete(f"ingest/{first['source_id']}/group-g.jsonl")  # so that it has something to do
    assert run(root, work) == first


def test_two_runs_with_different_settings_read_each_file_once_and_do_not_touch_each_others_records(
    tmp_path: Path,
) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("ingest-settings")
    put(root / "large.png", image_bytes(7, side=40))
    first = run(root, work)
    records = {entry.key: work.read(entry.key) for entry in work.list(f"ingest/{first['source_id']}")}
    strict = run(root, work, limits={"min_side": 32}, lanes=2)
    assert (strict["read"], strict["images"], strict["groups"]) == (0, 1, 2)
    assert {entry.key: work.read(entry.key) for entry in work.list(f"ingest/{first['source_id']}")} == records
    operational = run(root, work, readers=3, max_rejected=1)
    assert operational["source_id"] == first["source_id"] != strict["source_id"]


def test_a_workdir_in_the_source_is_ignored(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    put(root / "work/runs/first/samples/0.png", image_bytes(9))
    put(root / "workshop.png", image_bytes(10))
    assert run(root, open_storage(str(root / "work")))["images"] == 7


def test_a_workdir_that_is_the_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workdir.* source"):
        run(photos(tmp_path), open_storage(str(tmp_path)))


def test_a_store_is_ingested_like_a_folder() -> None:
    photos, work = open_storage("memory://ingest-store/photos"), MemoryStorage("ingest-store-work")
    photos.write("a/b.png", image_bytes(1))
    photos.write("a/b.txt", b"a cat")
    result = run("memory://ingest-store/photos", work)
    assert images(work, result)["a/b.png"].caption is not None
    assert run("memory://ingest-store/photos", work)["read"] == 0


def test_when_all_images_are_rejected_the_reasons_are_counted_in_the_message(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.jpg", b"words")
    put(tmp_path / "empty.png", b"")
    with pytest.raises(DataError, match=r"(?s)3 × not-an-image: .*'0\.jpg'.*1 × empty-file: "):
        run(tmp_path, MemoryStorage("ingest-all-bad"))


@pytest.mark.parametrize("settings", [{"extensions": ["jpg"]}, {"extensions": [".JPG"]}, {"lanes": 51}, {"source": ""}])
def test_invalid_settings_are_errors_that_name_them(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        IngestConfig.parse({"source": "photos", **settings})


def test_the_command_prints_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    assert main(["--workdir", str(tmp_path / "work"), "--set", f"source={root}", "--set", "lanes=2"]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (event["event"], event["images"], event["groups"]) == ("done", 6, 2)


def test_the_digits_are_the_same_everywhere_and_leave_what_is_there_alone() -> None:
    folder = MemoryStorage("digits")
    folder.write("0003-three.txt", b"my own words")
    folder.write("mine.png", b"my own image")
    assert write_digits(folder, Progress(io.StringIO())) == 2 * 1797 - 1
    assert folder.read("0003-three.txt") == b"my own words"
    assert folder.read("mine.png") == b"my own image"
    assert folder.read("0013-three.txt") == b"a handwritten digit three\n"
    made = contents(folder)
    assert write_digits(folder, Progress(io.StringIO())) == 0
    assert contents(folder) == made
    # Which digits are held out follows from their bytes, so these may not change from machine to machine.
    pngs = {name: sha256(data) for name, data in made.items() if name[0] in "01" and name.endswith(".png")}
    assert len(pngs) == 1797
    assert digest(pngs) == "64989f989e4f682411136db13ffbd01e30ca44e4efa48fe1f1ead969b5af4333"
    three = Image.open(io.BytesIO(made["0003-three.png"]))
    assert (three.mode, three.size) == ("L", (32, 32))
