"""An image that the filters reject costs no captioner's time, and a captioner's words are never asked for twice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.image_captions import Draft
from components.caption.job import CaptionJob
from components.caption.models.captioner import Captioner
from components.caption.screening import Screening
from components.image.decoding import ImageLimits
from components.image.filters import FilterConfig
from components.image.records import Caption, CaptionRecord, ImageOutcome, Rejection, read_images
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from tests.stores.memory import MemoryStorage

WORK = MemoryStorage("screening")


class Writer:
    """Writes a caption for whatever it is shown, and remembers what that was."""

    def __init__(self) -> None:
        self.shown: list[Image.Image] = []

    def write(self, images: Sequence[Image.Image]) -> list[tuple[Caption, ...]]:
        self.shown += images
        return [(Caption(f"{image.width} wide", "model:writer"),) for image in images]


def photos(root: Path) -> Path:
    root.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (32, 40 + number, 3), np.uint8)
        Image.fromarray(noise).save(root / f"{number}.png")
    for name, colour in (("plain", "white"), ("dark", "black")):
        Image.new("RGB", (70, 50), colour).save(root / f"{name}.png")
    (root / "broken.png").write_bytes((root / "0.png").read_bytes()[:500])
    return root


def outcomes(root: Path, writer: Writer, **filters: Any) -> list[ImageOutcome]:
    source_id = str(ingest(IngestConfig.parse({"source": str(root)}), WORK, Progress(io.StringIO()))["source_id"])
    config = CaptionConfig.parse({"model": "someone/writer", "filters": filters})
    job = CaptionJob(config, ImageLimits(), "g", source_id, "key", WORK)
    images = read_images(WORK, source_id, "g")
    image_captions = job.image_captions(images)
    with ThreadPoolExecutor(2) as pool:
        drafts = [one for one in image_captions.from_text(images, pool) if isinstance(one, Draft)]
        batches = image_captions.from_models([drafts[:4], drafts[4:]], cast(Captioner, writer), pool)
        return [outcome for batch in batches for outcome in batch]


def test_what_is_rejected_is_not_shown_to_the_captioner(tmp_path: Path) -> None:
    writer = Writer()
    made = outcomes(photos(tmp_path / "photos"), writer)
    assert sorted(image.width for image in writer.shown) == [40, 41, 42]
    records = {one.name: one for one in made if isinstance(one, CaptionRecord)}
    assert {name: one.captions[0].text for name, one in records.items()} == {
        f"{number}.png": f"{40 + number} wide" for number in range(3)
    }
    assert all(one.phash and one.verdicts["spread"].endswith(" v1") for one in records.values())
    rejected = {one.name: one for one in made if isinstance(one, Rejection)}
    assert {name: one.reason for name, one in rejected.items()} == {
        "plain.png": "flat", "dark.png": "flat", "broken.png": "truncated"
    }  # fmt: skip
    plain = rejected["plain.png"]
    assert (plain.step, plain.value, plain.threshold, plain.scores["spread"]) == ("caption", 0.0, 1.0, "0 v1")
    assert "filters.min_spread" in plain.detail


def test_an_earlier_rejection_is_judged_by_the_threshold_of_now(tmp_path: Path) -> None:
    made = outcomes(photos(tmp_path / "photos"), Writer())
    plain = next(one for one in made if one.name == "plain.png")
    broken = next(one for one in made if one.name == "broken.png")
    record = next(one for one in made if one.name == "0.png")
    stricter = Screening(FilterConfig.parse({"min_spread": 3}), WORK)
    renewed = stricter.renewed(plain)
    assert isinstance(renewed, Rejection)
    assert (renewed.threshold, renewed.sha256) == (3.0, plain.sha256)
    assert "at least 3" in renewed.detail
    assert Screening(FilterConfig.parse({"min_spread": None}), WORK).renewed(plain) is None
    other = Screening(FilterConfig.parse({"min_spread": None, "min_sharpness": 5}), WORK).renewed(plain)
    assert isinstance(other, Rejection)
    assert other.reason == "blurry"
    # Neither thresholds nor anything else of the filters undo what a captioner wrote, or make a broken file whole.
    assert stricter.renewed(broken) is broken
    assert Screening(FilterConfig.parse({"min_spread": 100, "min_sharpness": 1e5}), WORK).renewed(record) is record


def test_a_score_by_another_model_is_no_score(tmp_path: Path) -> None:
    made = outcomes(photos(tmp_path / "photos"), Writer())
    record = next(one for one in made if isinstance(one, CaptionRecord))
    filters = {"watermark": {"model": "someone/classifier"}}
    screening = Screening(FilterConfig.parse(filters), WORK)
    assert screening.missing(record.verdicts) == {"watermark"}
    scores = {**record.verdicts, "watermark": f"0.99 {screening.versions['watermark']}"}
    assert screening.missing(scores) == set()
    relabelled = Screening(FilterConfig.parse({"watermark": {**filters["watermark"], "label": "logo"}}), WORK)
    assert relabelled.missing(scores) == {"watermark"}
    assert relabelled.missing({**scores, "spread": "torn"}) == {"watermark", "spread"}
    rejection = Rejection("x.png", "caption", "watermark", "", "0" * 64, "v", 0.99, 0.9, scores)
    assert screening.renewed(rejection) is not None
    assert relabelled.renewed(rejection) is None
