"""Prompts from a dataset's own captions: which are noted, and which of them are chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.prompts import LONGEST, NOTED, PROMPTS, CaptionNotes, NotedCaptions, prompts_of
from components.dataset.versions import Dataset, Shard, make_dataset, read_dataset, write_dataset
from components.errors import DataError
from tests.stores.memory import MemoryStorage

HOSTILE = "<script>\x1b[31m\u202e'; rm -rf /\n| *x*"


def dataset(noted: NotedCaptions, digest: str = "ab") -> Dataset:
    shard = Shard("shards/16x16/0", (16, 16), 9, 1, digest * 32)
    return replace(make_dataset("key", {}, [shard], rejected=0), noted_captions=noted)


def test_half_are_the_commonest_and_half_of_held_out_images() -> None:
    held_out = tuple(f"held out {number}" for number in range(20))
    noted = NotedCaptions(tuple(f"common {number}" for number in range(9)), held_out)
    chosen = prompts_of(dataset(noted), 0, "x")
    assert chosen[: PROMPTS // 2] == noted.common[: PROMPTS // 2]
    assert set(chosen[PROMPTS // 2 :]) < set(held_out)
    assert len(chosen) == PROMPTS
    assert chosen == prompts_of(dataset(noted), 0, "x")
    assert chosen != prompts_of(dataset(noted), 1, "x")
    assert chosen != prompts_of(dataset(noted, "cd"), 0, "x")


def test_with_captions_from_class_folders_every_class_is_drawn() -> None:
    classes = tuple(f"a photo of a {name}" for name in ("cat", "dog", "car", "tree", "house", "boat"))
    assert set(prompts_of(dataset(NotedCaptions(classes, classes[2:4])), 0, "x")) == set(classes)


def test_captions_that_no_two_images_share_come_from_held_out_images_if_there_are_any() -> None:
    notes = CaptionNotes()
    for number in range(50):
        notes.add([f"unique {number}", " "], is_held_out=number < 5)
    noted = notes.result()
    assert noted.common == ()
    assert set(noted.held_out) == {f"unique {number}" for number in range(5)}
    everything = CaptionNotes()
    everything.add(["unique"], is_held_out=False)
    assert everything.result() == NotedCaptions(("unique",), ())


@given(st.lists(st.tuples(st.text(max_size=3), st.booleans())), st.randoms())
def test_the_order_of_the_images_does_not_matter(images: list[tuple[str, bool]], chance: object) -> None:
    def noted(order: list[tuple[str, bool]]) -> NotedCaptions:
        notes = CaptionNotes()
        for caption, is_held_out in order:
            notes.add([caption], is_held_out)
        return notes.result()

    shuffled = list(images)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert noted(shuffled) == noted(images)
    assert len(noted(images).held_out) <= NOTED


def test_hostile_and_endless_captions_are_kept_as_they_are_or_left_aside() -> None:
    notes = CaptionNotes()
    for _ in range(2):
        notes.add([HOSTILE, "x" * (LONGEST + 1)], is_held_out=False)
    noted = notes.result()
    assert noted.common == (HOSTILE,)
    storage = MemoryStorage("prompts")
    write_dataset(storage, dataset(noted))
    read = read_dataset(storage)
    assert read is not None
    assert read.noted_captions == noted


def test_a_dataset_of_an_earlier_version_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"train\.samples\.prompts names no prompts.*run the index step again"):
        prompts_of(dataset(NotedCaptions()), 0, "train.samples.prompts")
