"""Captions in a union: byte for byte those that each source alone gives, whatever they come from."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.caption.checks import caption_problems
from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.errors import DataError
from components.image.decoding import ImageLimits
from components.image.records import CaptionRecord, captions_prefix, read_captions, read_manifest
from components.ingest.config import IngestConfig
from components.ingest.union import ingest_sources
from components.progress import Progress
from tests.images import image_bytes
from tests.stores.memory import MemoryStorage


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """Two sources: images in folders and at the top, with texts, metadata and label files, some the same."""
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, numbers in ((a, range(8)), (b, range(6, 14))):
        for number in numbers:
            path = folder / ("cats", "", "001.Dogs")[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(number))
            if number % 4 == 0:
                path.with_suffix(".txt").write_text(f"{folder.name} {number}")
    (b / "metadata.jsonl").write_text(json.dumps({"file_name": "10.png", "text": "of metadata"}))
    (b / "labels.csv").write_text("7.png,a seven\n13.png,a thirteen\n")
    return a, b


def captions(name: str, config: CaptionConfig, *sources: Path) -> dict[str, CaptionRecord]:
    """The captions of some sources, as one if there are several, by digest."""
    work, progress = MemoryStorage(name), Progress(io.StringIO())
    given: dict[str, Any] = {"sources": list(map(str, sources))} if len(sources) > 1 else {"source": str(sources[0])}
    source_id = ingest_sources(IngestConfig.parse({**given, "group_images": 5}), work, progress)["source_id"]
    assert not list(caption_problems(config, work, source_id))
    records: dict[str, CaptionRecord] = {}
    for group in read_manifest(work, source_id).groups:
        caption(config, ImageLimits(), group, source_id, f"{source_id}/key", work, progress)
        of_group = read_captions(work.child(captions_prefix(f"{source_id}/key")), group)
        records |= {record.sha256: record for record in of_group}
    return records


@pytest.mark.parametrize("order", [["sidecar", "folder"], ["folder", "sidecar"], ["labels", "sidecar"], ["sidecar"]])
@pytest.mark.parametrize("take", ["first", "all"])
def test_captions_are_those_of_each_source_alone(sources: tuple[Path, Path], order: list[str], take: str) -> None:
    settings = {"sources": order, "take": take, "model": None, "missing": "empty"}
    config = CaptionConfig.parse({**settings, "labels": {"layout": "csv"}})
    without = CaptionConfig.parse({**settings, "sources": [one for one in order if one != "labels"]})
    name = f"captions-{'-'.join(order)}-{take}"
    a = captions(f"{name}-a", without, sources[0])
    b = captions(f"{name}-b", config, sources[1])
    union = captions(f"{name}-union", config, *sources)
    assert union.keys() == a.keys() | b.keys()
    assert {record.name[:2] for record in union.values()} == {"a/", "b/"}
    for sha256, record in union.items():
        alone = a[sha256] if record.name.startswith("a/") else b[sha256]
        # A source without label files was asked for none when it was alone, which its captions' version says.
        asked = alone.caption_version if record.name.startswith("a/") and "labels" in order else record.caption_version
        assert replace(record, name=record.name[2:], caption_version=asked) == alone
    assert len({one.captions for one in union.values()}) > 3


def test_label_files_that_no_source_has_are_missing(sources: tuple[Path, Path]) -> None:
    (sources[1] / "labels.csv").unlink()
    config = CaptionConfig.parse({"sources": ["labels"], "labels": {"layout": "csv"}, "model": None})
    with pytest.raises((DataError, AssertionError), match=r"labels\.csv"):
        captions("captions-no-labels", config, *sources)


def test_label_files_elsewhere_are_for_all_sources(sources: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("".join(f"{number}.png,number {number}\n" for number in range(14)))
    labels = {"layout": "csv", "at": str(tmp_path / "all.csv")}
    config = CaptionConfig.parse({"sources": ["labels"], "labels": labels, "model": None})
    assert len(captions("captions-all-labels", config, *sources)) == 14


def test_adding_a_source_captions_no_image_again(sources: tuple[Path, Path]) -> None:
    config = CaptionConfig.parse({"sources": ["folder", "fixed"], "fixed": "a photo", "model": None})
    work, progress = MemoryStorage("captions-added"), Progress(io.StringIO())
    counts = []
    for given in ({"source": str(sources[0])}, {"sources": list(map(str, sources))}):
        source_id = ingest_sources(IngestConfig.parse(given), work, progress)["source_id"]
        counts.append(caption(config, ImageLimits(), "g", source_id, f"{source_id}/key", work, progress))
    assert [(one["captioned"], one["reused"]) for one in counts] == [(8, 0), (6, 8)]
