"""Captions come from the files beside the images, hold while nothing changes, and cost nothing twice."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.caption import group as captioning_group
from components.caption.__main__ import main
from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.digests import sha256
from components.errors import ConfigError, DataError, StorageError
from components.image.decoding import ImageLimits
from components.image.filters import PIXEL_SCORES
from components.image.records import (
    Caption,
    CaptionRecord,
    Rejection,
    Sidecar,
    read_caption_rejections,
    read_captions,
    read_images,
    write_captions,
    write_images,
)
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage
from tests.stores.mortal import contents, killed_everywhere

SET = "abcd/mine"
FOLDER = f"captions/{SET}"


def image(seed: int, side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def photos(root: Path, count: int = 4) -> Path:
    for number in range(count):
        put(root / f"{number:02d}.png", image(number))
        put(root / f"{number:02d}.txt", f"image {number}".encode())
    return root


def take(root: Path, work: Storage, **settings: Any) -> str:
    config = IngestConfig.parse({"source": str(root), **settings})
    return str(ingest(config, work, Progress(io.StringIO()))["source_id"])


def write(source_id: str, work: Storage, group: str = "g", limits: ImageLimits | None = None, **settings: Any) -> Any:
    config = CaptionConfig.parse({"model": None, **settings})
    return caption(config, limits or ImageLimits(), group, source_id, SET, work, Progress(io.StringIO()))


def run(root: Path, work: Storage, **settings: Any) -> dict[str, int]:
    result = write(take(root, work), work, **settings)
    return {name: result[name] for name in ("captioned", "reused", "rejected")}


def records(work: Storage) -> dict[str, CaptionRecord]:
    return {record.name: record for record in read_captions(work.child(FOLDER), "g")}


def reasons(work: Storage) -> dict[str, str]:
    return {rejection.name: rejection.reason for rejection in read_caption_rejections(work.child(FOLDER), "g")}


def counts(captioned: int = 0, reused: int = 0, rejected: int = 0) -> dict[str, int]:
    return {"captioned": captioned, "reused": reused, "rejected": rejected}


def test_captions_come_from_the_files_beside_the_images(tmp_path: Path) -> None:
    work = MemoryStorage("caption-sidecars")
    assert run(photos(tmp_path / "photos"), work) == counts(captioned=4)
    record = records(work)["02.png"]
    data = (tmp_path / "photos/02.png").read_bytes()
    assert record.captions == (Caption("image 2", "sidecar:02.txt"),)
    assert set(record.verdicts) == set(PIXEL_SCORES)
    assert len(record.phash or "") == 16
    assert (record.sha256, record.bytes, record.width, record.height) == (sha256(data), len(data), 16, 16)
    order = [record.sha256 for record in read_captions(work.child(FOLDER), "g")]
    assert order == sorted(order)


def test_an_encoding_is_used_for_files_that_are_nothing_else(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos", 1), MemoryStorage("caption-encoding")
    captions = {"utf8": "naïve", "cp1251": "кот", "utf-16": "naïve", "utf-16-le": "cat"}
    for number, (encoding, text) in enumerate(captions.items(), start=10):
        put(root / f"{encoding}.png", image(number))
        put(root / f"{encoding}.txt", text.encode(encoding))
    assert run(root, work) == counts(captioned=3, rejected=2)
    assert reasons(work) == dict.fromkeys(("cp1251.png", "utf-16-le.png"), "caption-not-utf8")
    assert run(root, work, encoding="cp1251")["captioned"] == 4
    assert reasons(work) == {"utf-16-le.png": "caption-not-utf8"}
    assert {name: record.captions[0].text for name, record in records(work).items()} == {
        "00.png": "image 0",
        "utf8.png": "naïve",
        "cp1251.png": "кот",
        "utf-16.png": "naïve",
    }


def test_only_what_changed_is_captioned_again(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-again")
    run(root, work)
    assert run(root, work) == counts(reused=4)
    put(root / "new.png", image(50))
    put(root / "new.txt", b"a new image")
    assert run(root, work) == counts(captioned=1, reused=4)
    put(root / "01.txt", b"other words")
    assert run(root, work) == counts(captioned=1, reused=4)
    assert records(work)["01.png"].captions[0].text == "other words"
    put(root / "02.png", image(60))
    assert run(root, work) == counts(captioned=1, reused=4)
    (root / "03.png").unlink()
    assert run(root, work) == counts(reused=4)
    assert "03.png" not in records(work)
    assert run(root, work, max_characters=1000) == counts(captioned=4)


def test_what_a_filter_needs_besides_is_measured_without_captioning_again(tmp_path: Path) -> None:
    work = MemoryStorage(f"caption-measured-{tmp_path.name}")
    assert run(photos(tmp_path / "photos"), work) == counts(captioned=4)
    captions, before = work.child(FOLDER), records(work)
    write_captions(captions, "g", [replace(one, phash=None, verdicts={}) for one in before.values()], [])
    assert run(tmp_path / "photos", work) == counts(reused=4)
    assert records(work) == before


def test_a_rejection_that_no_threshold_asks_for_any_more_is_done_again(tmp_path: Path) -> None:
    work = MemoryStorage(f"caption-lowered-{tmp_path.name}")
    run(photos(tmp_path / "photos"), work)
    before = records(work)
    dull, *others = before.values()
    rejection = Rejection(
        dull.name, "caption", "flat", "", dull.sha256, dull.caption_version, 0.0, 999.0, dict(dull.verdicts)
    )
    write_captions(work.child(FOLDER), "g", others, [rejection])
    assert run(tmp_path / "photos", work) == counts(captioned=1, reused=3)
    assert records(work) == before


def test_what_another_set_has_is_not_captioned_again(tmp_path: Path) -> None:
    work = MemoryStorage(f"caption-another-{tmp_path.name}")
    run(photos(tmp_path / "photos"), work)
    before = contents(work.child(FOLDER))
    other = f"{take(tmp_path / 'photos', work)}/other"
    limits, quiet = ImageLimits(), Progress(io.StringIO())
    result = caption(CaptionConfig.parse({"model": None}), limits, "g", other.split("/")[0], other, work, quiet)
    assert (result["captioned"], result["reused"]) == (0, 4)
    assert contents(work.child(f"captions/{other}")) == before


def test_captions_of_this_set_count_before_those_of_others(tmp_path: Path) -> None:
    work = MemoryStorage(f"caption-own-{tmp_path.name}")
    run(photos(tmp_path / "photos"), work)
    before = records(work)
    other = [replace(one, captions=(Caption("another", "sidecar"),)) for one in before.values()]
    write_captions(work.child(f"captions/{take(tmp_path / 'photos', work)}/other"), "g", other, [])
    put(tmp_path / "photos/04.png", image(4))
    put(tmp_path / "photos/04.txt", b"image 4")
    assert run(tmp_path / "photos", work) == counts(captioned=1, reused=4)
    assert {name: record for name, record in records(work).items() if name in before} == before


def test_a_renamed_image_keeps_its_caption_under_its_new_name(tmp_path: Path) -> None:
    root, work = tmp_path / "photos", MemoryStorage("caption-renamed")
    put(root / "old.png", image(1))
    run(root, work, missing="empty")
    (root / "old.png").rename(root / "new.png")
    assert run(root, work, missing="empty") == counts(reused=1)
    assert list(records(work)) == ["new.png"]


def test_what_ingest_says_anew_of_an_image_reaches_its_outcome(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos", 2), MemoryStorage("caption-renewed")
    (root / "01.txt").unlink()
    source_id = take(root, work)
    write(source_id, work)
    images = read_images(work, source_id, "g")
    renewed = [replace(one, name=f"new-{one.name}", license="CC0-1.0", source="a museum") for one in images]
    write_images(work, source_id, "g", renewed)
    (root / "01.png").rename(root / "new-01.png")
    assert write(source_id, work) == {"group": "g", **counts(reused=1, rejected=1)}
    (record,) = records(work).values()
    assert (record.name, record.license, record.source) == ("new-00.png", "CC0-1.0", "a museum")
    assert list(reasons(work)) == ["new-01.png"]


def test_how_it_is_read_does_not_change_what_is_written(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 12)
    put(root / "00.txt", b"")
    works = [open_storage(str(tmp_path / "one")), MemoryStorage("caption-same")]
    for readers, work in enumerate(works, start=1):
        run(root, work, readers=readers, batch_size=readers)
    written = [{entry.key: work.read(entry.key) for entry in work.list("captions")} for work in works]
    assert written[0] == written[1]
    assert sorted(written[0]) == [f"{FOLDER}/g.jsonl", f"{FOLDER}/g.rejected.jsonl"]


@pytest.mark.parametrize(
    ("sidecar", "reason"), [(None, "caption-missing"), (b"", "caption-empty"), (b"\xff\xff", "caption-not-utf8")]
)
def test_without_a_usable_caption_an_image_is_rejected_or_kept_without(
    tmp_path: Path, sidecar: bytes | None, reason: str
) -> None:
    root, work = photos(tmp_path / "photos", 2), MemoryStorage(f"caption-missing-{reason}")
    put(root / "alone.png", image(9))
    if sidecar is not None:
        put(root / "alone.txt", sidecar)
    assert run(root, work) == counts(captioned=2, rejected=1)
    assert reasons(work) == {"alone.png": reason}
    assert run(root, work, missing="empty") == counts(captioned=3)
    record = records(work)["alone.png"]
    assert record.captions == (Caption("", "none"),)
    assert (reason in record.verdicts.get("caption", "")) == (sidecar is not None)


def test_a_further_source_is_asked_for_what_no_source_had_a_caption_for(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos", 2), MemoryStorage(f"caption-further-{tmp_path.name}")
    put(root / "dogs/alone.png", image(9))
    assert run(root, work, sources=["sidecar"]) == counts(captioned=2, rejected=1)
    assert run(root, work, sources=["sidecar"]) == counts(reused=2, rejected=1)
    assert run(root, work, sources=["sidecar", "folder"]) == counts(captioned=1, reused=2)
    assert records(work)["dogs/alone.png"].captions == (Caption("a photo of a dogs", "folder"),)


def test_a_rejection_by_content_is_not_tried_again(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-poison")
    put(root / "bad.png", image(8, side=64)[:2000])
    put(root / "bad.txt", b"a broken image")
    source_id = take(root, work)
    assert write(source_id, work)["rejected"] == 1
    first = reasons(work)["bad.png"]
    (root / "bad.png").unlink()  # were it read, it would now be unreadable
    assert write(source_id, work)["rejected"] == 1
    assert reasons(work)["bad.png"] == first == "truncated"


def test_a_rejection_that_may_pass_is_tried_again(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-passing")
    source_id = take(root, work)
    (root / "01.png").rename(tmp_path / "aside.png")
    assert write(source_id, work)["rejected"] == 1
    assert reasons(work) == {"01.png": "unreadable"}
    (tmp_path / "aside.png").rename(root / "01.png")
    assert write(source_id, work) == {"group": "g", **counts(captioned=1, reused=3)}


def test_an_image_that_changed_since_ingest_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-changed")
    source_id = take(root, work)
    put(root / "01.png", image(77))
    assert write(source_id, work)["rejected"] == 1
    assert reasons(work) == {"01.png": "changed"}


def test_a_caption_file_that_vanished_since_ingest_costs_one_image(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-vanished")
    source_id = take(root, work)
    (root / "01.txt").unlink()
    assert write(source_id, work)["rejected"] == 1
    assert reasons(work) == {"01.png": "caption-unreadable"}


def test_limits_hold_here_too(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-limits")
    source_id = take(root, work)
    assert write(source_id, work, limits=ImageLimits(min_side=17))["rejected"] == 4
    assert write(source_id, work) == {"group": "g", **counts(captioned=4)}


def test_a_killed_step_goes_on_where_it_was(tmp_path: Path) -> None:
    class Full(MemoryStorage):
        def write(self, key: str, data: bytes) -> None:
            if key == "g.jsonl":
                raise StorageError("no space left")
            super().write(key, data)

        def child(self, prefix: str) -> Full:
            return Full("caption-killed", prefix)

    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-killed")
    source_id = take(root, work)
    with pytest.raises(StorageError, match="no space"):
        write(source_id, Full("caption-killed"))
    assert write(source_id, work) == {"group": "g", **counts(reused=4)}
    assert [entry.key for entry in work.list(FOLDER) if "unfinished" in entry.key] == []


def test_killed_anywhere_it_says_done_last_asks_nobody_twice_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning_group, "SAVE_EVERY", 2)
    root = photos(tmp_path / "photos", 8)
    put(root / "03.txt", b"words that are too many")
    put(root / "05.png", image(5)).with_suffix(".txt").unlink()

    def before(work: Storage) -> None:
        write(take(root, work), work, prefix="once,")

    def after(work: Storage) -> int:
        result = write(source_id, work, max_characters=20)
        assert (result["captioned"] + result["reused"], result["rejected"]) == (6, 2)
        return int(result["reused"])

    whole = MemoryStorage(f"{tmp_path.name}-whole")
    source_id = take(root, whole)
    after(whole)
    expected, reused = contents(whole.child(FOLDER)), []
    for work in killed_everywhere(before, after, f"memory://{tmp_path.name}"):
        files = contents(work.child(FOLDER))
        if files["g.jsonl"] == expected["g.jsonl"]:
            assert files["g.rejected.jsonl"] == expected["g.rejected.jsonl"]
        reused.append(after(work))
        assert contents(work.child(FOLDER)) == expected
    assert reused[0] == 0
    assert reused == sorted(reused), "what was written down once is not asked for again"
    assert reused[-1] == 6


def test_what_a_killed_step_left_torn_is_done_again(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-torn")
    for name, data in {"0": b'{"sha256": "ab', "1": b'{"reason": "empty", "sort": 1}\n'}.items():
        work.write(f"{FOLDER}/g.unfinished/{name}.jsonl", data)
    assert run(root, work) == counts(captioned=4)


def test_each_group_has_its_own_file(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos", 20), MemoryStorage("caption-groups")
    source_id = take(root, work, lanes=3)
    groups = ("g00", "g01", "g10", "g11")
    done = [write(source_id, work, group)["captioned"] for group in groups]
    assert sum(done) == 20
    digests = [record.sha256 for group in groups for record in read_captions(work.child(FOLDER), group)]
    assert len(set(digests)) == 20


def test_captions_of_an_older_format_are_written_anew(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-older")
    run(root, work)
    key = f"{FOLDER}/g.jsonl"
    lines = [dict(line) for line in work.read_records(key)]
    work.write_records(key, ({**line, "captions": []} for line in lines))
    with pytest.raises(DataError, match="no captions"):
        read_captions(work.child(FOLDER), "g")
    assert run(root, work) == counts(captioned=4)
    work.write_records(key, ({**line, "captions": None, "caption": "a"} for line in lines))
    with pytest.raises(DataError, match="expected an object of sha256"):
        read_captions(work.child(FOLDER), "g")
    assert run(root, work) == counts(captioned=4)


def test_without_ingest_the_message_says_what_to_run() -> None:
    with pytest.raises(DataError, match="run the ingest step first"):
        write("0123456789abcdef", MemoryStorage("caption-nothing"))
    with pytest.raises(DataError, match="run the caption step first"):
        read_captions(MemoryStorage("caption-nothing"), "g")


def test_a_captioner_that_is_not_there_is_a_wrong_setting(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "photos"), MemoryStorage("caption-no-model")
    with pytest.raises(ConfigError, match=r"/no/such/model.*no such folder"):
        run(root, work, model="/no/such/model")


@pytest.mark.parametrize(
    "settings", [{"missing": "guess"}, {"batch_size": 0}, {"max_characters": 10**9}, {"model": ""}]
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CaptionConfig.parse(settings)


def test_the_command_prints_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = open_storage(os.fspath(tmp_path / "work"))
    source_id = take(photos(tmp_path / "photos"), work)
    arguments = ["--workdir", work.url, "--source-id", source_id, "--group", "g", "--caption-set", SET]
    assert main([*arguments, "--limit", "min_side=16"]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event == {"event": "done", "group": "g", **counts(captioned=4)}
    assert main([*arguments, "--limit", "min_size=16"]) == 78
    assert "did you mean min_side?" in capsys.readouterr().err


def test_words_that_ingest_brought_along_need_no_file(tmp_path: Path) -> None:
    work = MemoryStorage("caption-inline")
    source_id = take(photos(tmp_path / "photos", 1), work)
    (image,) = read_images(work, source_id, "g")
    inline = Sidecar("metadata.jsonl:00.png", 11, "tag", text="  a blue\ncat ")
    write_images(work, source_id, "g", [replace(image, caption=inline)])
    assert read_images(work, source_id, "g")[0].caption == inline
    caption(CaptionConfig(), ImageLimits(), "g", source_id, SET, work, Progress(io.StringIO()))
    (record,) = read_captions(work.child(FOLDER), "g")
    assert record.captions == (Caption("a blue cat", "metadata:metadata.jsonl:00.png"),)
