"""Tags are shuffled and dropped by the image's digest alone, and what is done to words is noted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.caption.caption_rules import captions_of, check
from components.caption.composing import compose, split, variants
from components.caption.config import CaptionConfig, TagsConfig
from components.caption.processes import batches, share
from components.digests import sha256
from components.errors import ConfigError, ImageRejected
from components.image.records import Caption

IMAGE = sha256(b"an image")
TAGS = "1girl, solo, red hair, smile, outdoors, tree, sky"


def composed(text: str, by: str = "sidecar:a.txt", **settings: Any) -> list[tuple[str, str]]:
    config = CaptionConfig.parse(settings)
    return [(made.text, made.by) for made in compose([Caption(text, by)], IMAGE, config)]


def test_words_are_left_as_they_are_unless_something_is_asked_for() -> None:
    assert composed("a cat, on a mat") == [("a cat, on a mat", "sidecar:a.txt")]


@pytest.mark.parametrize(
    ("settings", "text", "changes"),
    [
        ({"trigger": "sks"}, "sks dog", "+trigger"),
        ({"prefix": "a photo of ", "trigger": "sks", "suffix": ", hd"}, "a photo of sks dog, hd",
         "+prefix+trigger+suffix"),
        ({"prefix": "{label} {x} "}, "{label} {x} dog", "+prefix"),
        ({"trigger": "sks", "tags": {"separator": ", "}}, "sks, dog", "+trigger"),
    ],
)  # fmt: skip
def test_prefix_trigger_and_suffix_are_put_around(settings: dict[str, Any], text: str, changes: str) -> None:
    assert composed("dog", **settings) == [(text, f"sidecar:a.txt{changes}")]


def test_an_image_without_a_caption_still_has_its_trigger() -> None:
    assert composed("", "none", trigger="sks") == [("sks", "none+trigger")]
    assert composed("", "none", tags={"separator": ", ", "shuffled": 4}) == [("", "none")]


def test_tags_are_shuffled_behind_those_that_stay() -> None:
    made = composed(TAGS, tags={"separator": ", ", "shuffled": 5, "keep": 2})
    assert len(made) == 5 == len({text for text, _ in made})
    for text, by in made:
        assert by == "sidecar:a.txt+shuffled"
        assert text.startswith("1girl, solo, ")
        assert sorted(text.split(", ")) == sorted(TAGS.split(", "))


def test_a_captioner_writes_sentences_whatever_the_files_hold() -> None:
    settings = {"tags": {"separator": ",", "shuffled": 3}, "trigger": "sks"}
    assert composed("a cat, on a mat", "model:blip@1", **settings) == [("sks a cat, on a mat", "model:blip@1+trigger")]


def test_the_same_caption_twice_is_one() -> None:
    words = [Caption("a cat", "sidecar:a.txt"), Caption("a dog", "model:x@1"), Caption("a cat", "model:y@1")]
    made = compose(words, IMAGE, CaptionConfig())
    assert made == (words[0], words[1])
    assert len(composed("one, two", tags={"separator": ", ", "shuffled": 64})) == 2


def test_tags_are_dropped_as_often_as_asked_and_never_those_that_stay() -> None:
    config = TagsConfig(separator=", ", keep=1, dropout=0.25)
    tags = [f"tag {number}" for number in range(20)]
    kept: Counter[str] = Counter()
    for number in range(500):
        (caption,) = variants(", ".join(tags), sha256(b"%d" % number), config)
        chosen = caption.split(", ")
        assert chosen == [tag for tag in tags if tag in chosen]  # not shuffled
        kept.update(chosen)
    assert kept["tag 0"] == 500
    share_kept = sum(kept[tag] for tag in tags[1:]) / (500 * 19)
    assert abs(share_kept - 0.75) < 0.02  # 4.5 standard deviations of 9,500 draws


def test_orders_are_even() -> None:
    config = TagsConfig(separator=",", shuffled=1)
    first = Counter(variants("a,b,c,d", sha256(b"%d" % number), config)[0][0] for number in range(2000))
    assert all(abs(first[tag] / 2000 - 0.25) < 0.05 for tag in "abcd")


@given(st.text(max_size=60), st.integers(0, 5), st.integers(0, 4), st.floats(0, 0.9))
def test_any_text_gives_captions_that_are_the_same_each_time(text: str, shuffled: int, keep: int, drop: float) -> None:
    config = TagsConfig(separator=",", shuffled=shuffled, keep=keep, dropout=drop)
    made = variants(text, IMAGE, config)
    assert made == variants(text, IMAGE, config)
    assert 1 <= len(made) <= max(shuffled, 1)
    assert all(set(split(variant, ",")) <= set(split(text, ",")) for variant in made)


@pytest.mark.parametrize(
    ("text", "separator", "tags"),
    [("a, b,c,,  ", ", ", ["a", "b", "c"]), ("a b  c", " ", ["a", "b", "c"]), ("a|b, c", "|", ["a", "b, c"])],
)
def test_tags_stand_between_separators(text: str, separator: str, tags: list[str]) -> None:
    assert split(text, separator) == tags


@pytest.mark.parametrize(
    ("text", "settings", "reason", "message"),
    [
        ("a cat", {"min_characters": 6}, "caption-too-short", "5 characters, at least 6 (min_characters)"),
        ("a cat", {"max_characters": 4}, "caption-too-long", "5 characters, at most 4 (max_characters)"),
        ("A Watermark!", {"banned": ["nude", "watermark"]}, "caption-banned", "'watermark', one of the 2 banned words"),
        ("IN C++ IT", {"banned": ["c++"]}, "caption-banned", "'c++'"),
        ("straße", {"banned": ["STRASSE"]}, "caption-banned", "'STRASSE'"),
    ],
)
def test_a_caption_that_breaks_a_rule_says_which(text: str, settings: Any, reason: str, message: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        check(text, CaptionConfig.parse(settings))
    assert caught.value.reason == reason
    assert message in caught.value.detail


def test_banned_words_are_whole() -> None:
    assert check("a nudel and denude", CaptionConfig(banned=("nude",))) == "a nudel and denude"


@pytest.mark.parametrize(("lines", "captions"), [("join", ["one two"]), ("first", ["one"]), ("all", ["one", "two"])])
def test_a_file_with_several_lines(lines: str, captions: list[str]) -> None:
    assert captions_of("\n one \n\n two\n", CaptionConfig.parse({"lines": lines})) == captions


def test_of_several_lines_those_that_can_be_used_are_used_unless_one_is_banned() -> None:
    config = CaptionConfig(lines="all", min_characters=3, banned=("bad",))
    assert captions_of("ab\nabc", config) == ["abc"]
    with pytest.raises(ImageRejected, match="caption-too-short"):
        captions_of("ab\na", config)
    with pytest.raises(ImageRejected, match="caption-banned"):
        captions_of("abc\nso bad", config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ["sidecar", "sidecar"]}, "source"),
        ({"sources": ["fixed"]}, "fixed"),
        ({"sources": ["labels"]}, "labels.layout"),
        ({"sources": []}, "sources"),
        ({"sources": ["sidecars"]}, "sources"),
        ({"min_characters": 9, "max_characters": 8}, "min_characters"),
        ({"tags": {"shuffled": 2}}, "separator"),
        ({"tags": {"separator": ",", "dropout": 1.0}}, "dropout"),
        ({"trust_remote_code": "owner/name"}, "owner/name@revision"),
        ({"trust_remote_code": "owner/name@1"}, r"trust_remote_code \(owner/name@1\)"),
        ({"model": "a/b@2", "trust_remote_code": "a/b@1"}, r"trust_remote_code \(a/b@1\)"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CaptionConfig.parse(settings)


def test_captioners_are_given_as_one_name_or_in_several() -> None:
    assert CaptionConfig().captioners == ("Salesforce/blip-image-captioning-base",)
    assert CaptionConfig.parse({"model": ["blip", "some/folder"]}).captioners[1] == "some/folder"
    assert CaptionConfig.parse({"model": None}).order == ("sidecar",)
    assert CaptionConfig.parse({"sources": ["folder"]}).captioners == ()


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 8))
def test_every_batch_has_one_process_and_shares_are_even(images: int, size: int, world: int) -> None:
    parts = batches(list(range(images)), size)
    shares = [share(parts, rank, world) for rank in range(world)]
    assert sorted(image for mine in shares for part in mine for image in part) == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(len(part) == size for part in parts[:-1])


def test_batches_left_by_a_killed_step_are_the_same_again() -> None:
    parts = batches(list(range(50)), 8)
    done = {image for part in share(parts, 1, 3) for image in part}
    rest = batches([image for image in range(50) if image not in done], 8)
    assert rest == [part for number, part in enumerate(parts) if number % 3 != 1]
