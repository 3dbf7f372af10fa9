"""Authors of captions are counted by kind, and nothing of a single image or of somebody's machine is published."""

from __future__ import annotations

import pytest

from components.image.authors import author, count_authors
from components.image.records import Caption, CaptionRecord


@pytest.mark.parametrize(
    ("by", "who"),
    [
        ("sidecar:photos/a.txt", "sidecar"),
        ("sidecar:a+b:c.txt+shuffled+trigger", "sidecar+shuffled+trigger"),
        ("metadata:metadata.jsonl:photos/a.jpg+prefix", "metadata+prefix"),
        ("labels:cub+dropout+suffix", "labels:cub+dropout+suffix"),
        ("folder", "folder"),
        ("none+trigger", "none+trigger"),
        ("model:Salesforce/blip-image-captioning-base@0123", "model:Salesforce/blip-image-captioning-base@0123"),
        ("model:/home/somebody/models/blip@0123", "model:blip@0123"),
        ("model:s3://bucket/secret/blip@0123+trigger", "model:blip@0123+trigger"),
        ("model:workdir:models/captioner@0123", "model:captioner@0123"),
        ("", ""),
    ],
)
def test_an_author_is_named_without_the_image(by: str, who: str) -> None:
    assert author(by) == who


def test_captions_are_counted_most_captions_first() -> None:
    captions = [(Caption("a", "folder"),), (Caption("b", "sidecar:x.txt"), Caption("c", "sidecar:x.txt"))]
    counts = count_authors(CaptionRecord("00", "x.png", 1, made, "v", 8, 8) for made in captions)
    assert list(counts.items()) == [("sidecar", 2), ("folder", 1)]
