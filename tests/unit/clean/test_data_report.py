"""The data report tells what is there, carries its images within itself, and nothing in the data can break it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.clean.config import CleanConfig
from components.clean.histograms import aspects, histogram
from components.clean.reporting import badge, besides, headline, summary, write_report
from components.clean.sheets import read_sheets
from components.clean.tally import (  # fmt: skip
    LENGTHS,
    SIDES,
    WIDEST,
    Shown,
    Tally,
    aspect_column,
    forget_rare,
    spans,
    words_of,
)
from components.digests import sha256
from components.image.buckets import square_bucket
from components.image.filters import FilterConfig
from components.image.records import Caption, CaptionRecord, Manifest, Rejection
from components.image.sources import open_source
from components.image.union import UnionMember
from components.progress import Progress
from components.report.config import ReportConfig
from components.report.reporting import report
from tests.stores.memory import MemoryStorage

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x00\n|`*[x](javascript:1)"


SIDE = st.integers(1, 9000)


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def check(self) -> None:
        assert not {tag for tag, _ in self.tags} & {"script", "iframe", "object", "embed", "form", "base", "a", "image"}
        for _, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")]
            assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href", "srcset"))

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


def record(name: str, data: bytes = b"", text: str = "a red dog", **values: Any) -> CaptionRecord:
    own: dict[str, Any] = {"captions": (Caption(text, "sidecar:x.txt"),), "width": 640, "height": 480, **values}
    return CaptionRecord(sha256(data or name.encode("utf-8", "replace")), name, 100, caption_version="v", **own)


def image(seed: int, size: tuple[int, int] = (90, 60)) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def written(
    tally: Tally, source: str = "memory://data-report-source", members: tuple[UnionMember, ...] = (), **config: Any
) -> tuple[dict[str, Any], Page]:
    dataset = MemoryStorage("data-report-dataset")
    manifest = Manifest(source, 0, 0, ("g",), "", masks=3, other_files={".mp4": 2, ".<b>": 40}, members=members)
    write_report(CleanConfig.parse(config), FilterConfig(), tally, manifest, "abcd", dataset, dataset)
    assert dataset.read("report.md").decode()
    page = Page(dataset.read("report.html").decode())
    page.check()
    return dataset.read_json("report.json"), page


def test_sources_are_counted_and_have_their_shares() -> None:
    tally = Tally(0, 0, labels=("a", "b & c"))
    for number in range(6):
        tally.keep(record(f"a/{number}.png"))
    for number in range(2):
        tally.keep(record(f"b & c/{number}.png"))
    tally.reject(Rejection("b & c/x/y.png", "clean", "blurry", "said"))
    members = (UnionMember("a", "a", "/a", 0, 0), UnionMember("b & c", "b", "/b & <c>", 0, 0, repeats=2.5))
    numbers, page = written(tally, members=members)
    rows = [[row[name] for name in ("kept", "rejected", "repeats", "share")] for row in numbers["sources"]]
    assert rows == [[6, 0, 1.0, pytest.approx(6 / 11, abs=1e-6)], [2, 1, 2.5, pytest.approx(5 / 11, abs=1e-6)]]
    assert "/b & <c>" in page.text
    assert "45.5 %" in page.text
    assert written(Tally(0, 0))[0]["sources"] == []


def test_images_captions_and_reasons_are_counted() -> None:
    tally = Tally(10, 10)
    tally.keep(record("a", text="A dog, a DOG and 3 Cats", license="CC0"))
    captions = (Caption("one", "model:blip"), Caption("two words", "sidecar:b/c.txt"))
    tally.keep(record("b", captions=captions, width=300, height=1200))
    tally.reject(Rejection("c", "clean", "blurry", "said", "0" * 64, "v", 3.0, 20.0))
    tally.reject(Rejection("d", "ingest", "not-an-image", "said"))
    tally.reject(Rejection("e", "ingest", "not-an-image", "said"))
    numbers = tally.numbers(words=3)
    assert (numbers["images"], numbers["kept"], numbers["captions"]) == (5, 2, 3)
    assert numbers["rejected"] == [
        {"step": "ingest", "reason": "not-an-image", "images": 2, "threshold": None},
        {"step": "clean", "reason": "blurry", "images": 1, "threshold": 20.0},
    ]
    assert numbers["words"] == [["dog", 2], ["cats", 1], ["one", 1]]
    assert numbers["authors"] == [["sidecar", 2], ["model:blip", 1]]
    assert numbers["licenses"] == [["", 1], ["CC0", 1]]
    assert dict(numbers["shorter_sides"]) == {**dict.fromkeys(spans(SIDES), 0), "384–511": 1, "256–383": 1}
    assert dict(numbers["caption_words"]) == {**dict.fromkeys(spans(LENGTHS), 0), "1–2": 2, "6–10": 1}
    assert (numbers["aspects"][0], sum(numbers["aspects"])) == (1, 2)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (None, None),
        (7, "The text encoder reads 7 tokens of a caption; a word is one token or several. No caption has more words;"),
        (
            4,
            "2 of 3 captions have more words, so they are cut; all that are cut are counted with",
        ),
    ],
)
def test_captions_that_are_surely_cut_are_counted_and_the_rest_is_pointed_to(
    tokens: int | None, words: str | None
) -> None:
    tally = Tally(10, 10, tokens=tokens)
    for text in ("a red dog", "one two three four five", "a - b - c"):
        tally.keep(record(text, text=text))
    numbers, page = written(tally)
    if words is None:
        assert numbers["surely_cut"] is None
        assert "text encoder" not in page.text
        return
    assert numbers["surely_cut"] == {"captions": 2 if tokens == 4 else 0, "tokens": tokens}
    assert words in page.text
    assert "in the run's report and the model card" in page.text
    assert "latents.text_chunks" in page.text
    assert "tokenizer" in summary(numbers)


def test_the_badge_is_green_only_if_hardly_any_image_was_rejected() -> None:
    def shown(kept: int, rejected: int) -> tuple[str, str]:
        numbers = {"images": kept + rejected, "kept": kept}
        return badge(numbers)

    assert shown(156, 0) == ("good", "156 kept")
    assert shown(150, 6) == ("good", "150 of 156 kept")
    assert shown(100, 56) == ("fair", "100 of 156 kept")
    assert shown(16, 140) == ("bad", "16 of 156 kept")
    assert shown(0, 0) == ("bad", "0 kept")


def test_the_headline_names_the_commonest_reasons() -> None:
    reasons = [{"reason": name, "images": number} for number, name in enumerate(("a", "<b>\n", "c", "d", "e"), 1)]
    numbers = {"images": 20, "kept": 5, "rejected": reasons[::-1]}
    said = "5 of 20 images can be trained on, 15 were rejected: e 5, d 4, c 3, and 2 more reasons."
    assert headline(numbers).replace("\N{NO-BREAK SPACE}", " ") == said
    assert "\n" not in headline({**numbers, "rejected": reasons})


def test_what_is_cropped_away_is_counted_and_shown_dark(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 100), "white").save(file, "PNG")
    (tmp_path / "wide.png").write_bytes(file.getvalue())
    tally = Tally(0, 0, square_bucket(200))
    tally.keep(record("wide.png", file.getvalue(), width=400, height=100))
    tally.keep(record("gone.png", width=200, height=50))
    numbers, page = written(tally, str(tmp_path))
    assert [(row["images"], row["cropped_away"], row["enlarged"]) for row in numbers["buckets"]] == [(2, 0.75, 1.0)]
    assert re.search(r"Enlarged\s*2\s*images, 4 times at most", page.text)
    worst = [(one["name"], one["enlargement"], one["crop"]) for one in numbers["worst_fits"]]
    assert worst == [("gone.png", 4, [75, 0, 50, 50]), ("wide.png", 2, [150, 0, 100, 100])]
    (shown,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert shown["alt"] == "75\xa0% cropped away, enlarged 2 times"
    tile = Image.open(io.BytesIO(base64.b64decode(str(shown["src"]).partition("base64,")[2]))).convert("L")
    left, middle = tile.getpixel((5, 20)), tile.getpixel((tile.width // 2, 20))
    assert isinstance(left, int)
    assert isinstance(middle, int)
    assert left < 90 < 240 < middle


def test_if_no_image_is_enlarged_no_enlargement_is_named() -> None:
    tally = Tally(0, 0, square_bucket(100))
    tally.keep(record("large.png", width=300, height=250))
    _, page = written(tally)
    assert re.search(r"Enlarged\s*0\s*images", page.text)
    assert "times at most" not in page.text


def test_what_else_was_in_the_source_is_listed() -> None:
    tally = Tally(0, 0)
    tally.keep(record("a", verdicts={"transparent": "0.25 v1"}))
    tally.keep(record("b", verdicts={"transparent": "0 v1", "caption": "caption-empty: 'b.txt': 0 characters"}))
    tally.keep(record("c", verdicts={"caption": "caption-empty: 'c.txt': 0 characters"}))
    numbers, page = written(tally)
    assert besides(numbers) == [
        (1, "kept images with transparent pixels, which are put on white"),
        (3, "images with a mask, which is recorded with them"),
        (2, "kept images whose own caption could not be used (such as caption-empty: 'b.txt': 0 characters)"),
        (40, "other files: .<b>"),
        (2, "other files: .mp4"),
    ]
    assert "40 other files: .<b>" in page.text
    assert "2 kept images whose own caption could not be used (such as caption-empty: 'b.txt'" in page.text
    nothing = {**numbers, "transparent": 0, "masks": 0, "unused_captions": {"images": 0, "example": ""}}
    assert besides({**nothing, "other_files": {}}) == []


def test_columns_are_where_they_say() -> None:
    assert spans((1, 3, 4)) == ["0", "1–2", "3", "4+"]
    assert spans((32, 64)) == ["< 32", "32–63", "64+"]
    assert [aspect_column(*size) for size in [(100, 100), (200, 100), (1, 4), (1, 9), (9, 1)]] == [
        WIDEST, WIDEST + 4, 0, 0, 2 * WIDEST
    ]  # fmt: skip
    assert words_of("L'été — naïve-ish don’t_stop 東京タワー x" + "y" * 99) == [
        "l'été", "naïve-ish", "don’t", "stop", "東京タワー", "x" + "y" * 39
    ]  # fmt: skip


@settings(deadline=None)
@given(st.permutations(range(30)))
def test_which_images_are_shown_does_not_depend_on_the_order(order: Sequence[int]) -> None:
    shown = Shown(5)
    for number in order:
        shown.offer(f"{number:04d}", f"{number}.jpg", "", "")
    assert [name for _, name, _, _ in shown.chosen] == [f"{number}.jpg" for number in range(5)]
    nothing = Shown(0)
    nothing.offer("a", "a", "", "")
    assert nothing.chosen == []


def test_a_world_of_words_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.clean.tally.DIFFERENT", 100)
    tally = Tally(0, 0)
    for number in range(3000):
        tally.keep(record(f"{number}", text=f"dog word{number}x", license=f"licence {number}"))
    numbers = tally.numbers(words=1000)
    assert numbers["words"][0] == ["dog", 3000]
    assert len(numbers["words"]) <= 101
    assert len(numbers["licenses"]) <= 101


def test_images_are_in_the_page_or_say_why_not() -> None:
    source = MemoryStorage("data-report-source")
    files = {
        "good.png": image(1),
        "small.png": image(2, (20, 10)),
        "other.png": image(3),
        "torn.png": image(4)[:99],
    }
    for name, data in files.items():
        source.write(name, data)
    tally = Tally(10, 10)
    for name in ("good.png", "small.png"):
        tally.keep(record(name, files[name], text=f"caption of {name}"))
    tally.keep(record("gone.png"))
    tally.reject(Rejection("torn.png", "caption", "truncated", "99 bytes", sha256(files["torn.png"])))
    tally.reject(Rejection("other.png", "clean", "blurry", "changed since", "0" * 64, "v", 1.0, 2.0))
    numbers, page = written(tally)
    assert numbers["kept"] == 3
    shown = [attributes for tag, attributes in page.tags if tag == "img"]
    assert sorted(str(attributes["alt"]) for attributes in shown) == ["caption of good.png", "caption of small.png"]
    (small,) = [attributes for attributes in shown if attributes["width"] == "20"]
    assert (small["height"], small["class"]) == ("10", "pixels")
    for text in ("truncated", "changed", "unreadable", "3 of 5 images"):
        assert text in page.text
    _, page = written(tally, kept_images=0, source="/nowhere/at/all")
    assert page.count("img") == 0


def test_a_hundred_images_are_small_ones() -> None:
    source = MemoryStorage("data-report-large")
    data = image(5, (1500, 900))
    source.write("large.png", data)
    shown = Shown(1)
    shown.offer("a", "large.png", sha256(data), "text")
    ((one,),) = read_sheets(lambda: open_source("memory://data-report-large"), [shown], 100)
    assert one.tile is not None
    assert (one.tile.width, one.tile.height) == (100, 60)
    assert one.tile.uri.startswith("data:image/jpeg;base64,")
    assert len(one.tile.uri) < 20_000


def test_nothing_in_the_data_becomes_a_tag() -> None:
    tally = Tally(10, 10)
    captions = (Caption(EVIL, f"model:{EVIL}"),)
    tally.keep(record(EVIL, captions=captions, license=EVIL, source=EVIL))
    tally.reject(Rejection(EVIL, EVIL, EVIL, EVIL, None))
    _, page = written(tally)
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert "\u202e" not in page.text
    dataset = MemoryStorage("data-report-dataset")
    summary = dataset.read("report.md").decode()
    assert "<script" not in summary
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", summary + page.text.replace("\t", ""))
    assert "](javascript" not in summary.replace("\\]\\(", "")
    assert "\n|`" not in summary


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=30), SIDE, SIDE), max_size=6))
def test_any_data_make_a_page(images: list[tuple[str, str, int, int]]) -> None:
    tally = Tally(3, 3)
    for name, text, width, height in images:
        tally.keep(record(name or "x", text=text, width=width, height=height, license=text or None))
        tally.reject(Rejection(name, text, name, text))
    numbers, _ = written(tally)
    assert json.dumps(numbers)
    assert sum(numbers["aspects"]) == len(images)


def test_a_page_without_any_images_says_so() -> None:
    numbers, page = written(Tally(5, 5))
    assert numbers["images"] == 0
    assert "No images were found." in page.text
    assert "No image was rejected." in page.text


def test_a_histogram_shows_every_column_that_holds_something() -> None:
    drawn = histogram([["a", 1], ["b", 0], ["c", 100_000]], (1, 2), "Things")
    page = Page(str(drawn))
    bars = [attributes for tag, attributes in page.tags if tag == "rect"]
    assert [float(str(bar["height"])) > 1 for bar in bars] == [True, True]
    assert "a: 1" in page.text
    assert "c: 100,000" in page.text
    assert page.tags[0][1]["aria-label"] == "Things: a 1, c 100,000"
    assert Page(str(aspects([0] * (2 * WIDEST + 1)))).count("rect") == 0


def test_the_runs_report_leads_to_it_and_nowhere_else(tmp_path: Path) -> None:
    workdir = MemoryStorage("data-report-run")
    step = {"step": "clean", "group": None, "status": "done", "started": 1.0, "seconds": 1.0, "error": None}
    for path, link in [("captions/ab-12/cd-34/report.html", True), ("javascript:alert(1)", False), ("../../x", False)]:
        workdir.write_json("runs/first/steps/clean.json", {**step, "result": {"report": path, "kept": 3}})
        report(ReportConfig(), "first", "SUCCEEDED", workdir, Progress(io.StringIO()))
        page = Page(workdir.read("runs/first/report.html").decode())
        links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
        assert links == (["../../captions/ab-12/cd-34/report.html"] if link else [])


def test_what_is_frequent_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.clean.tally.DIFFERENT", 4)
    counter = Counter({"a": 9, "b": 8, "c": 1, "d": 1, "e": 1})
    forget_rare(counter)
    assert counter == {"a": 9, "b": 8}
