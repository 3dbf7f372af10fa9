"""Several sources: each image once, with the names and captions that its own source gives it, and killed as one."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from components.errors import ConfigError, DataError
from components.image.records import ImageRecord, read_images, read_ingest_rejections, read_manifest
from components.image.sources import open_images
from components.image.union import UnionMember, labels_of, rates_of, shares_of
from components.image.union_source import open_places
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.ingest.union import ingest_sources
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.images import image_bytes
from tests.stores.memory import MemoryStorage
from tests.stores.mortal import contents, killed_everywhere


def photos(root: Path, *numbers: int) -> Path:
    for number in numbers:
        (root / "cats").mkdir(parents=True, exist_ok=True)
        (root / "cats" / f"{number}.png").write_bytes(image_bytes(number))
        (root / "cats" / f"{number}.txt").write_text(f"{root.name} {number}")
    return root


def run(work: Storage, *sources: Any, **settings: Any) -> dict[str, Any]:
    given = [str(one) if isinstance(one, Path) else one for one in sources]
    config = IngestConfig.parse({"sources": given, "max_rejected": None, **settings})
    return ingest_sources(config, work, Progress(io.StringIO()))


def images(work: Storage, result: dict[str, Any]) -> dict[str, ImageRecord]:
    source_id = result["source_id"]
    groups = read_manifest(work, source_id).groups
    return {image.name: image for group in groups for image in read_images(work, source_id, group)}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return photos(tmp_path / "a", *range(6)), photos(tmp_path / "b", *range(4, 9))


def test_a_union_has_each_image_once(two: tuple[Path, Path]) -> None:
    work, (a, b) = MemoryStorage("union-once"), two
    (b / "bad.jpg").write_text("no image")
    (a / "copy.png").write_bytes(image_bytes(0))
    result = run(work, a, b)
    names = {f"a/cats/{number}.png" for number in range(6)} | {f"b/cats/{number}.png" for number in (6, 7, 8)}
    assert images(work, result).keys() == names
    assert {name: image.caption.name for name, image in images(work, result).items() if image.caption} == {
        name: name.replace(".png", ".txt") for name in names
    }
    rejections = {one.name: one for one in read_ingest_rejections(work, result["source_id"])}
    assert rejections.pop("b/bad.jpg").reason == "not-an-image"
    assert {name: (one.reason, one.detail) for name, one in rejections.items()} == {
        "a/copy.png": ("duplicate", "duplicate of a/cats/0.png"),
        "b/cats/4.png": ("duplicate", "duplicate of a/cats/4.png"),
        "b/cats/5.png": ("duplicate", "duplicate of a/cats/5.png"),
    }
    assert (result["images"], result["rejected"]) == (9, 4)
    assert [(one["label"], one["images"], one["rejected"]) for one in result["sources"]] == [("a", 6, 1), ("b", 3, 3)]
    source = open_images(read_manifest(work, result["source_id"]), work)
    assert source.read("b/cats/7.png") == image_bytes(7)
    assert source.read("a/cats/3.txt", 2, 1) == b"3"
    assert {file.name for file in source.list()} >= names


def test_of_equal_images_the_most_repeated_is_kept_then_the_first(two: tuple[Path, Path]) -> None:
    work, (a, b) = MemoryStorage("union-equal"), two
    assert "b/cats/4.png" in images(work, run(work, b, a))
    often = run(work, a, {"source": str(b), "repeats": 2.0})
    assert {name[0] for name in images(work, often) if name[-5] in "45"} == {"b"}
    assert [one["images"] for one in often["sources"]] == [4, 5]
    assert [one["share"] for one in often["sources"]] == [pytest.approx(4 / 14), pytest.approx(10 / 14)]


def test_another_order_of_sources_has_the_same_images(two: tuple[Path, Path]) -> None:
    work, (a, b) = MemoryStorage("union-order"), two
    one, other = (images(work, run(work, *order)) for order in ((a, b), (b, a)))
    assert {image.sha256 for image in one.values()} == {image.sha256 for image in other.values()}


def test_a_source_has_the_same_records_alone_and_in_a_union(two: tuple[Path, Path]) -> None:
    work, (a, b) = MemoryStorage("union-alone"), two
    alone = ingest(IngestConfig.parse({"source": str(a)}), work, Progress(io.StringIO()))
    before = contents(work)
    result = run(work, a, b)
    assert result["read"] == 5, "only the files of the other source"
    assert {key: data for key, data in contents(work).items() if key in before} == before
    assert run(work, a, b) == {**result, "read": 0, "new": 0}
    photos(b, 9)
    assert run(work, a, b)["images"] == result["images"] + 1
    assert ingest(IngestConfig.parse({"source": str(a)}), work, Progress(io.StringIO()))["read"] == 0
    assert alone["source_id"] != result["source_id"]


def test_a_union_that_is_killed_at_any_moment_is_finished_by_the_next(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    whole = open_storage(f"memory://union-killed-{tmp_path.name}")
    run(whole, a, b, group_images=4)
    killed = killed_everywhere(
        lambda work: None, lambda work: run(work, a, b, group_images=4), f"memory://union-killed-at-{tmp_path.name}"
    )
    moments = 0
    for moments, work in enumerate(killed):
        run(work, a, b, group_images=4)
        assert contents(work) == contents(whole), f"killed at {moments}"
    assert moments > 10


def test_repeats_and_weights_make_unions_of_their_own(two: tuple[Path, Path]) -> None:
    work, (a, b) = MemoryStorage("union-ids"), two
    second: tuple[dict[str, Any], ...] = ({}, {"repeats": 2.0}, {"repeats": 3.0}, {"layout": "folder"})
    assert len({run(work, a, {"source": str(b), **settings})["source_id"] for settings in second}) == 4
    run(work, a, {"source": str(b), "repeats": 4.0})
    assert run(work, a, {"source": str(b), "repeats": 5.0})["read"] == 0


def test_labels_are_the_last_parts_of_the_places_and_unique() -> None:
    assert labels_of(["/x/a", "/y/a", "s3://a", "/", "/z/a-2"]) == ("a", "a-2", "a-3", "source", "a-2-2")


def member(repeats: float | None = None, weight: float | None = None) -> UnionMember:
    return UnionMember("a", "a", "/a", 0, 0, repeats, weight)


def test_weights_become_repeats_of_at_least_one() -> None:
    weighted = [member(weight=1), member(weight=3)]
    assert [float(rate) for rate in rates_of(weighted, [100, 10])] == [1, 30]
    assert [float(rate) for rate in rates_of(weighted, [10, 100])] == [pytest.approx(10 / 3), 1]
    assert [float(share) for share in shares_of(weighted, [7, 11])] == [0.25, 0.75]
    assert [float(rate) for rate in rates_of([member(0.1), member()], [5, 5])] == [0.1, 1]
    assert shares_of(weighted, [0, 5])[0] == 0
    assert shares_of(weighted, [0, 0]) == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "source: missing; folder of images"),
        ({"source": "a", "sources": ["b"]}, "source ('a') and sources are both set"),
        ({"sources": [{"source": "a", "repeats": 1, "weight": 2}]}, "sources.0.repeats (1) and sources.0.weight (2)"),
        ({"sources": [{"source": "a", "weight": 2}, "b"]}, "sources: some have a weight and some have none"),
        ({"sources": [{"source": "a", "repeats": 0}]}, "sources.0.repeats: 0 is not allowed"),
        ({"sources": [{"source": "a", "repeats": -1.5}]}, "sources.0.repeats: -1.5 is not allowed"),
        ({"sources": [{"source": "a", "repeats": float("nan")}]}, "sources.0.repeats: nan is not allowed"),
        ({"sources": [{"source": "a", "repeats": 1e9}]}, "sources.0.repeats: 1000000000.0 is not allowed"),
        ({"sources": [{"source": "a", "weight": 0}, "b"]}, "sources.0.weight: 0 is not allowed"),
        ({"sources": ["a", {}]}, "sources.1.source: missing"),
        ({"sources": ["a", ""]}, "sources.1.source: '' is not allowed"),
        ({"sources": ["a", 3]}, "sources.1: 3 is not allowed: expected a section"),
        ({"sources": ["a", {"sorce": "b"}]}, "did you mean sources.1.source?"),
    ],
)
def test_bad_settings_are_errors_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        IngestConfig.parse(settings)


def test_places_are_apart_and_exist(two: tuple[Path, Path]) -> None:
    a, b = two
    for place in (str(a), f"{a}/", f"{b}/../a"):
        with pytest.raises(ConfigError, match="are the same place"):
            open_places([str(a), str(b), place])
    with pytest.raises(ConfigError, match="lies in"):
        open_places([str(a / "cats"), str(b), str(a)])
    with pytest.raises(DataError, match="does not exist"):
        open_places([str(a), str(a.parent / "c")])
