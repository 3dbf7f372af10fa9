"""Class folders and the label files of well-known datasets become captions; what does not parse is reported at once."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.caption.config import CaptionConfig, LabelsConfig
from components.caption.group import caption
from components.caption.labels import FILES, clean, from_folder, matching, parse, read_labels
from components.errors import ConfigError, DataError
from components.image.decoding import ImageLimits
from components.image.records import CaptionRecord, read_captions
from components.image.sources import open_source
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage
from tests.stores.memory import MemoryStorage

CELEBA = """3
5_o_Clock_Shadow Black_Hair Smiling
000001.jpg -1  1  1
000002.jpg -1 -1 -1
000003.jpg  1 -1  1
"""


def image(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(layout: str, text: str, columns: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return dict(parse(layout, {FILES[layout][0]: text}, columns))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("n02085620-Chihuahua/n02085620_10074.jpg", "Chihuahua"),
        ("Images/n02089078-black-and-tan_coonhound/a.jpg", "black-and-tan coonhound"),
        ("images/001.Black_footed_Albatross/a.jpg", "Black footed Albatross"),
        ("10_sks dog/a.jpg", "sks dog"),
        ("street_dogs/a.jpg", "street dogs"),
        ("1940/a.jpg", "1940"),
        ("<b>&_'x'/a.jpg", "<b>& 'x'"),
        ("a.jpg", None),
        ("___/a.jpg", None),
    ],
)
def test_a_folder_is_called_after_its_class(name: str, label: str | None) -> None:
    assert from_folder(name) == label


@given(st.text(max_size=40))
def test_any_name_is_cleaned_to_one_line(name: str) -> None:
    assert clean(name) == " ".join(clean(name).split())
    assert "_" not in clean(name)


def test_cub_is_joined_by_number() -> None:
    texts = {
        "images.txt": "1 001.Black_footed_Albatross/x 1.jpg\n2 002.Laysan_Albatross/y.jpg\n",
        "image_class_labels.txt": "1 1\n2 2\n",
        "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
    }
    labels = dict(parse("cub", texts))
    assert labels == {
        "001.Black_footed_Albatross/x 1.jpg": ("Black footed Albatross",),
        "002.Laysan_Albatross/y.jpg": ("Laysan Albatross",),
    }
    with pytest.raises(DataError, match=r"image_class_labels\.txt.* 2 "):
        dict(parse("cub", {**texts, "image_class_labels.txt": "1 1\n"}))
    with pytest.raises(DataError, match=r"classes\.txt, line 1: .*'<html>'"):
        dict(parse("cub", {**texts, "classes.txt": "<html>"}))


def test_celebas_attributes_that_hold_are_joined() -> None:
    assert rows("celeba", CELEBA) == {
        "000001.jpg": ("Black Hair", "Smiling"),
        "000002.jpg": (),
        "000003.jpg": ("5 o Clock Shadow", "Smiling"),
    }
    assert rows("celeba", CELEBA, ("Smiling", "Black_Hair"))["000001.jpg"] == ("Smiling", "Black Hair")
    with pytest.raises(DataError, match=r"'Smile'.* 5_o_Clock_Shadow, Black_Hair, Smiling"):
        rows("celeba", CELEBA, ("Smile",))
    with pytest.raises(DataError, match=r"line 4: .*'000002.jpg -1 -1'.* 3 "):
        rows("celeba", CELEBA.replace("000002.jpg -1 -1 -1", "000002.jpg -1 -1"))
    with pytest.raises(DataError, match="first line"):
        rows("celeba", "000001.jpg 1 1")


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ('a.png,red cat\nb.png,"blue, dark"\n', (), {"a.png": ("red cat",), "b.png": ("blue, dark",)}),
        ("\nfilename,label\na.png,red_cat\n", (), {"a.png": ("red cat",)}),
        ("label;File_Name;size\nred;.\\x\\a.png;3\n", ("label",), {"x/a.png": ("red",)}),
        ("id\tbreed\n000bec,boston_bull\n".replace(",", "\t"), (), {"000bec": ("boston bull",)}),
        ("image,a,b\nx.png,one,\n", (), {"x.png": ("one",)}),
        ("image,a,b\nx.png,one,two\n", ("b", "a"), {"x.png": ("two", "one")}),
    ],
)
def test_a_table_names_files_and_labels(text: str, columns: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert rows("csv", text.lstrip("\n"), columns) == expected


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a.png\n", (), "line 1: .*'a.png'"),
        ("filename,label\na.png,x\nb.png\n", (), "line 3: .*'b.png'"),
        ("a.png,x\n", ("breed",), "line 1: .*'a.png,x'.* columns"),
        ("filename,label\na.png,x\n", ("breed",), "'breed'.* label"),
        ('a.png,"x\n', (), "unexpected end of data"),
    ],
)
def test_a_table_that_does_not_parse_is_told_by_line(text: str, columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows("csv", text, columns)


@pytest.mark.parametrize(
    ("value", "columns", "expected"),
    [
        ({"a.png": "red_cat", "b.png": ["x", "y"]}, (), {"a.png": ("red cat",), "b.png": ("x", "y")}),
        ([{"file_name": "a.png", "breed": "pug"}], (), {"a.png": ("pug",)}),
        ({"labels": [["00000/img0.png", 6], ["00000/img1.png", "cat"]]}, (),
         {"00000/img0.png": ("6",), "00000/img1.png": ("cat",)}),
        ({"0": {"image": {"file_path": "images1024x1024/00000/00000.png"}, "category": "training"}}, ("category",),
         {"images1024x1024/00000/00000.png": ("training",)}),
        ({"00007": {"faceAttributes": {"gender": "female", "age": 31.0, "smile": True, "glasses": None}}}, (),
         {"00007": ("female", "age 31", "smile")}),
        ({"a.png": {"count": 10**400, "share": 0.5}}, (), {"a.png": (f"count {10**400}", "share 0.5")}),
        ({"00007": {"faceAttributes": {"gender": "female", "age": 31.0}}}, ("faceAttributes.gender",),
         {"00007": ("female",)}),
    ],
)  # fmt: skip
def test_json_has_labels_by_file(value: Any, columns: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert rows("json", json.dumps(value), columns) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a.png": ' + "[" * 500 + "]" * 500 + "}", " 20 "),
        ("[" * 100_000, "JSON"),
        ("{", "JSON"),
        ('[{"breed": "pug"}]', " file"),
        ("7", " object .* list"),
    ],
)
def test_json_that_does_not_parse_is_told(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows("json", text)


@given(st.text(max_size=200), st.sampled_from(["csv", "json", "celeba"]))
def test_any_text_parses_or_is_refused(text: str, layout: str) -> None:
    try:
        parsed = rows(layout, text)
    except DataError:
        return
    assert all(isinstance(label, str) for labels in parsed.values() for label in labels)


def test_an_image_is_the_longest_file_that_its_name_ends_in() -> None:
    labels = [("a.jpg", ("plain",)), ("x/a.jpg", ("deeper",)), ("b", ("stem",)), ("c.jpg", ("unused",))]
    names = ["img/a.jpg", "img/x/a.jpg", "img/b.png", "ca.jpg"]
    assert matching(labels, names) == {"img/a.jpg": ("plain",), "img/x/a.jpg": ("deeper",), "img/b.png": ("stem",)}


@pytest.mark.parametrize(
    "template", ["a photo", "{label} {name}", "{}", "{label!r}", "{label.x}", "{label", "{label:9}"]
)
def test_a_wrong_template_is_refused_by_name(template: str) -> None:
    with pytest.raises(ConfigError, match="label_template"):
        CaptionConfig.parse({"label_template": template})


def birds(root: Path) -> Path:
    """A tiny CUB-200-2011: two classes, three images, one of which its files do not name."""
    for number, name in enumerate(["001.Black_Tern/a.png", "002.House_Wren/b.png", "002.House_Wren/c.png"]):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(image(number))
    (root / "images.txt").write_text("1 001.Black_Tern/a.png\n2 002.House_Wren/b.png\n")
    (root / "image_class_labels.txt").write_text("1 1\n2 2\n")
    (root / "classes.txt").write_text("1 001.Black_Tern\n2 002.House_Wren\n")
    return root


def run(root: Path, work: Storage, **settings: Any) -> dict[str, Any]:
    progress = Progress(io.StringIO())
    source_id = ingest(IngestConfig(source=str(root)), work, progress)["source_id"]
    config = CaptionConfig.parse({"model": None, **settings})
    return caption(config, ImageLimits(), "g", source_id, "src/key", work, progress)


def records(work: Storage) -> dict[str, CaptionRecord]:
    return {record.name: record for record in read_captions(work.child("captions/src/key"), "g")}


def test_label_files_and_folders_caption_a_dataset(tmp_path: Path) -> None:
    root, work = birds(tmp_path / "birds"), MemoryStorage("caption-birds")
    settings = {"sources": ["labels", "folder"], "labels": {"layout": "cub"}, "label_template": "a {label}, a bird"}
    assert run(root, work, **settings)["captioned"] == 3
    labels = {name: (record.captions[0].text, record.captions[0].by) for name, record in records(work).items()}
    assert labels == {
        "images/001.Black_Tern/a.png": ("a Black Tern, a bird", "labels:cub"),
        "images/002.House_Wren/b.png": ("a House Wren, a bird", "labels:cub"),
        "images/002.House_Wren/c.png": ("a House Wren, a bird", "folder"),
    }
    (root / "classes.txt").write_text("1 001.Black_Tern\n2 002.Carolina_Wren\n")
    again = run(root, work, **settings)
    assert (again["captioned"], again["reused"]) == (1, 2)
    assert records(work)["images/002.House_Wren/b.png"].captions[0].text == "a Carolina Wren, a bird"


def test_label_files_may_lie_elsewhere(tmp_path: Path) -> None:
    root = birds(tmp_path / "birds")
    images = open_source(str(root / "images"))
    config = LabelsConfig(layout="cub", at=str(root))
    assert read_labels(config, images, ["001.Black_Tern/a.png"]) == {"001.Black_Tern/a.png": ("Black Tern",)}


def test_label_files_that_are_missing_or_wrong_stop_the_step_before_any_work(tmp_path: Path) -> None:
    root, work = birds(tmp_path / "birds"), MemoryStorage("caption-no-labels")
    with pytest.raises(DataError, match=r"'labels\.csv'.*caption\.labels\.at"):
        run(root, work, sources=["labels"], labels={"layout": "csv"})
    (root / "labels.csv").write_bytes(b"a.png,\xff")
    with pytest.raises(DataError, match=r"labels\.csv.*UTF-8"):
        run(root, work, sources=["labels"], labels={"layout": "csv"})
    (root / "labels.csv").write_bytes(b"a.png")
    with pytest.raises(DataError, match="line 1"):
        run(root, work, sources=["labels"], labels={"layout": "csv"})
    with pytest.raises(DataError, match=r"symlink-outside|unreadable"):
        run(root, work, sources=["labels"], labels={"layout": "csv", "at": "../labels.csv"})
    assert list(work.list("captions")) == []
