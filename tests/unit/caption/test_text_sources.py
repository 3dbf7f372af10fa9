"""Sources are asked in order; what an image's captions depend on is what was asked for it, and nothing else."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.image.decoding import ImageLimits
from components.image.records import (
    CaptionRecord,
    Sidecar,
    read_caption_rejections,
    read_captions,
    read_images,
    write_images,
)
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from tests.stores.memory import MemoryStorage

QUIET = Progress(io.StringIO())


def image(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def dogs(root: Path) -> Path:
    """One image with a caption file in a folder, one without in a folder, one without at the top."""
    (root / "001.Great_Dane").mkdir(parents=True)
    (root / "001.Great_Dane/dane.png").write_bytes(image(1))
    (root / "001.Great_Dane/dane.txt").write_text("a dog\nthat runs")
    (root / "001.Great_Dane/alone.png").write_bytes(image(2))
    (root / "top.png").write_bytes(image(3))
    return root


def take(root: Path, work: Storage) -> str:
    return str(ingest(IngestConfig(source=str(root)), work, QUIET)["source_id"])


def write(source_id: str, work: Storage, **settings: Any) -> tuple[int, int, int]:
    config = CaptionConfig.parse({"model": None, **settings})
    result = caption(config, ImageLimits(), "g", source_id, "src/key", work, QUIET)
    return result["captioned"], result["reused"], result["rejected"]


def records(work: Storage) -> dict[str, CaptionRecord]:
    return {record.name.rpartition("/")[2]: record for record in read_captions(work.child("captions/src/key"), "g")}


def captions(work: Storage) -> dict[str, list[tuple[str, str]]]:
    return {name: [(made.text, made.by) for made in record.captions] for name, record in records(work).items()}


def reasons(work: Storage) -> dict[str, tuple[str, str]]:
    rejections = read_caption_rejections(work.child("captions/src/key"), "g")
    return {rejection.name.rpartition("/")[2]: (rejection.reason, rejection.detail) for rejection in rejections}


def test_the_first_source_that_has_a_caption_writes_it(tmp_path: Path) -> None:
    work = MemoryStorage("sources-order")
    source_id = take(dogs(tmp_path / "dogs"), work)
    assert write(source_id, work, sources=["sidecar", "folder", "fixed"], fixed="a pet") == (3, 0, 0)
    sidecar = "001.Great_Dane/dane.txt"
    assert captions(work) == {
        "dane.png": [("a dog that runs", f"sidecar:{sidecar}")],
        "alone.png": [("a photo of a Great Dane", "folder")],
        "top.png": [("a pet", "fixed")],
    }
    assert not any("caption" in record.verdicts for record in records(work).values())
    write(source_id, work, sources=["folder", "sidecar"])
    assert captions(work)["dane.png"] == [("a photo of a Great Dane", "folder")]
    assert reasons(work)["top.png"][0] == "caption-missing"


def test_all_sources_may_write(tmp_path: Path) -> None:
    work = MemoryStorage("sources-all")
    source_id = take(dogs(tmp_path / "dogs"), work)
    assert write(source_id, work, sources=["sidecar", "folder"], take="all", lines="all") == (2, 0, 1)
    sidecar = "sidecar:001.Great_Dane/dane.txt"
    assert captions(work)["dane.png"] == [
        ("a dog", sidecar), ("that runs", sidecar), ("a photo of a Great Dane", "folder")
    ]  # fmt: skip


def test_what_was_not_asked_does_not_matter(tmp_path: Path) -> None:
    work = MemoryStorage("sources-rest")
    source_id = take(dogs(tmp_path / "dogs"), work)
    order = {"sources": ["sidecar", "folder"]}
    assert write(source_id, work, **order) == (2, 0, 1)
    assert write(source_id, work, **order, batch_size=2, readers=1, processes=3) == (0, 2, 1)
    assert write(source_id, work, **order, label_template="a {label}") == (1, 1, 1)
    assert write(source_id, work, **order, label_template="a {label}", lines="first") == (2, 0, 1)
    assert write(source_id, work, **order, label_template="a {label}", lines="first", trigger="sks") == (2, 0, 1)


def test_a_source_that_is_added_is_asked_where_it_could_matter(tmp_path: Path) -> None:
    work = MemoryStorage("sources-added")
    source_id = take(dogs(tmp_path / "dogs"), work)
    assert write(source_id, work, sources=["model"]) == (0, 0, 3)
    assert write(source_id, work, sources=["sidecar"]) == (1, 0, 2)
    assert write(source_id, work, sources=["sidecar", "folder"]) == (1, 1, 1)
    assert write(source_id, work, sources=["sidecar", "folder", "fixed"], fixed="a pet") == (1, 2, 0)
    assert captions(work)["top.png"] == [("a pet", "fixed")]
    assert write(source_id, work, sources=["sidecar"], take="all") == (1, 0, 2)
    assert write(source_id, work, sources=["sidecar", "folder"], take="all") == (2, 0, 1)
    assert len(captions(work)["dane.png"]) == 2


def test_a_caption_that_cannot_be_used_is_passed_over_and_told(tmp_path: Path) -> None:
    work = MemoryStorage("sources-short")
    source_id = take(dogs(tmp_path / "dogs"), work)
    write(source_id, work, sources=["sidecar", "folder"], min_characters=20)
    assert captions(work)["dane.png"] == [("a photo of a Great Dane", "folder")]
    verdict = records(work)["dane.png"].verdicts["caption"]
    assert all(part in verdict for part in ("15 characters", "20", "(min_characters)"))
    write(source_id, work, sources=["sidecar", "folder"], min_characters=100)
    reason, detail = reasons(work)["dane.png"]
    assert reason == "caption-too-short"
    assert all(part in detail for part in ("'001.Great_Dane/dane.txt'", "15 characters", "100", "(min_characters)"))


def test_a_banned_word_leaves_the_image_out_whoever_else_could_caption_it(tmp_path: Path) -> None:
    work = MemoryStorage("sources-banned")
    source_id = take(dogs(tmp_path / "dogs"), work)
    settings = {"sources": ["sidecar", "folder"], "banned": ["RUNS"], "missing": "empty"}
    assert write(source_id, work, **settings) == (2, 0, 1)
    assert reasons(work).keys() == {"dane.png"}
    reason, detail = reasons(work)["dane.png"]
    assert reason == "caption-banned"
    assert all(part in detail for part in ("'001.Great_Dane/dane.txt'", "'RUNS'", "(banned)"))
    assert write(source_id, work, **settings) == (0, 2, 1)
    assert captions(work)["top.png"] == [("", "none")]


def test_words_in_metadata_are_what_counts_and_not_the_file_that_holds_them(tmp_path: Path) -> None:
    work = MemoryStorage("sources-metadata")
    source_id = take(dogs(tmp_path / "dogs"), work)
    images = read_images(work, source_id, "g")

    def write_sidecar(text: str, tag: str) -> None:
        inline = Sidecar("metadata.jsonl", 9, tag, text=text)
        changed = [replace(image, caption=inline, license="CC0-1.0", source=f"web/{tag}") for image in images]
        write_images(work, source_id, "g", changed)

    write_sidecar("a cat", "1")
    assert write(source_id, work) == (3, 0, 0)
    assert captions(work)["top.png"] == [("a cat", "metadata:metadata.jsonl")]
    write_sidecar("a cat", "2")
    assert write(source_id, work) == (0, 3, 0)
    assert (records(work)["top.png"].license, records(work)["top.png"].source) == ("CC0-1.0", "web/2")
    write_sidecar("a cow", "2")
    assert write(source_id, work) == (3, 0, 0)


def test_a_sidecar_without_a_tag_is_read_each_time(tmp_path: Path) -> None:
    work = MemoryStorage("sources-untagged")
    source_id = take(dogs(tmp_path / "dogs"), work)
    untagged = [
        replace(image, caption=replace(image.caption, modified="")) if image.caption else image
        for image in read_images(work, source_id, "g")
    ]
    write_images(work, source_id, "g", untagged)
    assert write(source_id, work, sources=["sidecar", "folder"]) == (2, 0, 1)
    assert write(source_id, work, sources=["sidecar", "folder"]) == (1, 1, 1)


def test_shuffled_tags_are_the_same_in_every_workdir(tmp_path: Path) -> None:
    root = dogs(tmp_path / "dogs")
    (root / "001.Great_Dane/dane.txt").write_text("dog, brown, running, grass, sky")
    made = []
    for name in ("sources-tags-1", "sources-tags-2"):
        work = MemoryStorage(name)
        tags = {"separator": ", ", "shuffled": 3, "keep": 1, "dropout": 0.3}
        write(take(root, work), work, tags=tags, trigger="sks")
        made.append(work.read("captions/src/key/g.jsonl"))
        texts = captions(work)["dane.png"]
        assert len(texts) == 3
        assert all(text.startswith("sks, dog") and by.endswith(".txt+shuffled+dropout+trigger") for text, by in texts)
    assert made[0] == made[1]
