"""What a killed caption step had finished is read back, captions and rejections alike."""

from __future__ import annotations

from components.caption.resume import clear_unfinished, read_unfinished, save_unfinished
from components.image.records import Caption, CaptionRecord, Rejection
from tests.stores.memory import MemoryStorage

RECORD = CaptionRecord("a" * 64, "a.png", 1, (Caption("a cat", "sidecar:a.txt"),), "v", 8, 8)
REJECTION = Rejection("b.png", "caption", "caption-empty", "0 characters", "b" * 64, "v")


def test_outcomes_of_each_kind_are_read_back_until_the_group_is_finished() -> None:
    dataset = MemoryStorage("resume")
    save_unfinished(dataset, "g", [RECORD, REJECTION])
    save_unfinished(dataset, "g", [RECORD])
    save_unfinished(dataset, "other", [REJECTION])
    assert sorted(map(repr, read_unfinished(dataset, "g"))) == sorted(map(repr, [RECORD, RECORD, REJECTION]))
    clear_unfinished(dataset, "g")
    assert read_unfinished(dataset, "g") == []
    assert read_unfinished(dataset, "other") == [REJECTION]
