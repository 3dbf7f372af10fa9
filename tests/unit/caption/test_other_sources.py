"""Captions of one source serve another that has the same images: no model is asked twice about an image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.caption.resume import save_unfinished
from components.errors import DamagedFile
from components.image.decoding import ImageLimits
from components.image.records import captions_prefix, read_captions, read_manifest
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from tests.images import image_bytes
from tests.stores.memory import MemoryStorage

FIXED = CaptionConfig.parse({"sources": ["fixed"], "fixed": "a photo", "model": None})


def photos(root: Path, *numbers: int) -> Path:
    root.mkdir(exist_ok=True)
    for number in numbers:
        (root / f"{root.name}-{number}.png").write_bytes(image_bytes(number))
    return root


class Captioned:
    """A source with its captions in a workdir."""

    def __init__(self, root: Path, work: Storage, config: CaptionConfig = FIXED, **settings: Any) -> None:
        progress = Progress(io.StringIO())
        ingested = ingest(IngestConfig.parse({"source": str(root), **settings}), work, progress)
        source_id, self.set = ingested["source_id"], f"{ingested['source_id']}/key"
        self.groups = read_manifest(work, source_id).groups
        self.captions = work.child(captions_prefix(self.set))
        limits = ImageLimits()
        done = [caption(config, limits, group, source_id, self.set, work, progress) for group in self.groups]
        self.captioned, self.reused = (sum(one[name] for one in done) for name in ("captioned", "reused"))

    def names(self) -> list[str]:
        return sorted(record.name for group in self.groups for record in read_captions(self.captions, group))


def test_a_group_that_splits_keeps_its_captions(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "a", *range(4)), MemoryStorage("other-split")
    whole = Captioned(root, work, group_images=4)
    split = Captioned(photos(root, *range(4, 9)), work, group_images=4)
    assert (whole.set, whole.groups) == (split.set, ("g",))
    assert split.groups == ("g00", "g01", "g10", "g11")
    assert (split.captioned, split.reused) == (5, 4)
    prefixed = FIXED.model_copy(update={"prefix": "a"})
    for captioned in (9, 0):  # the second time the group's own captions count, not those of the group it was a part of
        assert Captioned(root, work, prefixed, group_images=4).captioned == captioned


def test_another_setting_of_ingest_captions_nothing_again(tmp_path: Path) -> None:
    root, work = photos(tmp_path / "a", *range(9)), MemoryStorage("other-settings")
    first = Captioned(root, work, lanes=4)
    again = Captioned(root, work, lanes=2)  # larger groups than those that have the captions
    smaller = Captioned(root, work, lanes=8)
    assert (first.captioned, again.captioned, smaller.captioned) == (9, 0, 0)
    assert len({first.set, again.set, smaller.set}) == 3
    assert first.names() == again.names() == smaller.names()


def test_only_images_that_no_other_source_has_are_captioned(tmp_path: Path) -> None:
    work = MemoryStorage("other-source")
    Captioned(photos(tmp_path / "a", 0, 1, 2), work)
    other = Captioned(photos(tmp_path / "b", 1, 2, 3), work)
    assert (other.captioned, other.reused) == (1, 2)
    assert other.names() == ["b-1.png", "b-2.png", "b-3.png"], "an image has the name that it has in this source"
    assert Captioned(photos(tmp_path / "c", 1, 2), work, FIXED.model_copy(update={"fixed": "a dog"})).captioned == 2


def test_what_a_killed_step_of_another_source_has_saved_counts(tmp_path: Path) -> None:
    work = MemoryStorage("other-killed")
    first = Captioned(photos(tmp_path / "a", 0, 1), work)
    save_unfinished(first.captions, "g", read_captions(first.captions, "g"))
    first.captions.delete("g.jsonl")
    assert Captioned(photos(tmp_path / "b", 0, 1), work).captioned == 0


def test_damage_in_another_source_only_saves_no_work(tmp_path: Path) -> None:
    work = MemoryStorage("other-damaged")
    first = Captioned(photos(tmp_path / "a", 0, 1), work)
    first.captions.write("g.jsonl", first.captions.read("g.jsonl").replace(b"photo", b"phOto"))
    assert Captioned(photos(tmp_path / "b", 0, 1), work).captioned == 2
    with pytest.raises(DamagedFile):
        Captioned(photos(tmp_path / "a", 2), work)
