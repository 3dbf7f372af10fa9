"""A run that rejects too many images ends with the commonest reasons and their fixes, whichever step rejects them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from components.autoencoder.config import ModelConfig
from components.caption.config import CaptionConfig
from components.clean.config import CleanConfig
from components.clean.declaration import STEP as CLEAN
from components.command import StepRun
from components.errors import DataError
from components.image.records import (
    Caption,
    CaptionRecord,
    Manifest,
    Rejection,
    captions_prefix,
    write_captions,
    write_manifest,
    write_rejections,
)
from components.image.rejections import check_rejected, commonest, explain, fix
from components.ingest.config import IngestConfig
from components.latents.config import LatentsConfig
from components.progress import Progress
from components.settings import Settings
from components.storage.base import Storage
from tests.stores.memory import MemoryStorage


def rejected(reason: str, count: int, step: str = "caption") -> list[Rejection]:
    return [
        Rejection(f"{reason}-{i}.jpg", step, reason, f"what is wrong with {i}", "0" * 64, "v") for i in range(count)
    ]


def test_reasons_are_counted_and_the_commonest_come_first() -> None:
    rows = commonest([*rejected("too-small", 2), *rejected("corrupt", 3), *rejected("blurry", 2)])
    assert [(row.reason, row.images, row.name) for row in rows] == [
        ("corrupt", 3, "corrupt-0.jpg"),
        ("blurry", 2, "blurry-0.jpg"),
        ("too-small", 2, "too-small-0.jpg"),
    ]
    first, *_, last = explain(rows).splitlines()
    assert first == f"  3 × corrupt: {fix('corrupt')} (such as 'corrupt-0.jpg': what is wrong with 0)"
    assert last.startswith("  2 × too-small: ")


def test_many_reasons_are_summed_and_hostile_names_are_cut_and_escaped() -> None:
    rows = commonest([one for number in range(8) for one in rejected(f"reason-{number}", 10 - number)])
    *_, last = explain(rows).splitlines()
    assert last == "  12 for other reasons"
    (line,) = explain(commonest([Rejection("a\n\x1b[31m" + "x" * 999, "ingest", "corrupt", "y" * 999)])).splitlines()
    assert r"a\n\x1b[31m" in line
    assert len(line) < 600


@pytest.mark.parametrize(
    ("kept", "share", "ends"), [(4, 0.5, False), (3, 0.5, True), (0, 1.0, False), (0, None, False)]
)
def test_a_share_may_be_reached_and_not_exceeded(kept: int, share: float | None, ends: bool) -> None:
    if ends:
        with pytest.raises(
            DataError, match=r"4 of 7 images were rejected, more than ingest\.max_rejected accepts \(50%\)"
        ):
            check_rejected(kept, 4, lambda: rejected("corrupt", 4), share)
    else:
        check_rejected(kept, 4, lambda: rejected("corrupt", 4), share)


def test_what_loses_no_image_does_not_count() -> None:
    lines = [*rejected("metadata-broken", 50), *rejected("duplicate", 50), *rejected("archive-empty", 50)]
    check_rejected(1, len(lines), lambda: lines, 0.1)
    with pytest.raises(DataError, match="1 of 2 images"):
        check_rejected(1, len(lines) + 1, lambda: [*lines, *rejected("corrupt", 1)], 0.1)


def test_rejections_are_read_only_if_they_could_be_too_many() -> None:
    def read() -> list[Rejection]:
        raise AssertionError("nobody needs them")

    check_rejected(6, 4, read, 0.5)


class RunSettings(Settings):
    ingest: IngestConfig
    caption: CaptionConfig = CaptionConfig(model=())
    clean: CleanConfig = CleanConfig()
    model: ModelConfig = ModelConfig()
    latents: LatentsConfig = LatentsConfig()


@dataclass(frozen=True)
class Running:
    """One run of a step, as the pipeline offers it."""

    settings: RunSettings
    workdir: Storage
    progress: Progress = field(default_factory=lambda: Progress(io.StringIO()))
    run: str = "run"
    inputs: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    source_id: str = "source"
    caption_set: str = "source/captions"

    def encoding_key(self, base: Path) -> str:
        raise AssertionError("no step here encodes")


def captioned(name: str, kept: int, rejections: list[Rejection]) -> Storage:
    """A workdir in which ingest has accepted all images, and the caption step only some."""
    work = MemoryStorage(name)
    write_manifest(work, "source", Manifest("memory://nowhere", kept + len(rejections), 0, ("g",), "digest"))
    write_rejections(work, "ingest/source/rejected.jsonl", [])
    own = {"captions": (Caption("a cat", "fixed"),), "caption_version": "v", "width": 64, "height": 64}
    records = [CaptionRecord(f"{i:064x}", f"{i}.png", 9, **own) for i in range(kept)]  # type: ignore[arg-type]
    write_captions(work.child(captions_prefix("source/captions")), "g", records, rejections)
    return work


def test_the_clean_step_ends_a_run_in_which_captioning_rejected_too_many() -> None:
    work = captioned("too-many", 2, rejected("caption-missing", 3))

    def running(max_rejected: float | None) -> StepRun:
        return Running(RunSettings(ingest=IngestConfig(source="any", max_rejected=max_rejected)), work)

    assert CLEAN.run is not None
    for _ in range(2):  # also if nothing has changed since
        with pytest.raises(DataError, match=r"(?s)3 of 5 images.*3 × caption-missing: write a\.txt beside a\.jpg"):
            CLEAN.run(running(0.5))
    assert CLEAN.run(running(0.6))["kept"] == 2
    assert CLEAN.run(running(None))["kept"] == 2
