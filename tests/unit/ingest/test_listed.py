"""Nothing that lies in a source is lost without a word: masks, other files, and too many rejections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.errors import DataError
from components.image import optional_formats
from components.image.records import read_manifest
from components.ingest.declaration import STEP
from tests.images import encoded, image_bytes, noise
from tests.photos import Photos
from tests.tars import Tars, member, tar


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "photos")


@pytest.fixture
def tars(tmp_path: Path) -> Tars:
    return Tars(f"listed-{tmp_path.name}")


def masks(photos: Photos | Tars) -> dict[str, str | None]:
    """The name of each image's mask, by the image's."""
    images = photos.images().values() if isinstance(photos, Photos) else photos.images()
    return {
        image.name.partition("@")[0]: None if image.mask is None else image.mask.name.partition("@")[0]
        for image in images
    }


MASKED = {
    "a.png": "a.mask.png",
    "b.jpg": "b-masklabel.png",
    "c.png": "c_mask.PNG",
    "d.png": None,
    "alone.mask.png": None,
}


def test_a_mask_is_recorded_with_its_image_and_is_none_itself(photos: Photos) -> None:
    photos.put_images("a.png", "a.mask.png", "b.jpg", "b-masklabel.png", "c.png", "c_mask.PNG", "d.png")
    photos.put("alone.mask.png", image_bytes(10))
    assert photos.run()["images"] == 5
    assert masks(photos) == MASKED
    assert (photos.result["masks"], photos.rejected()) == (3, {})
    first = photos.result["digest"]
    photos.put("a.mask.png", image_bytes(11))
    assert photos.run()["digest"] != first
    (photos.root / "a.png").unlink()
    photos.run()
    assert masks(photos)["a.mask.png"] is None
    assert photos.result["masks"] == 2


def test_a_mask_in_a_tar_is_recorded_with_its_image(tars: Tars) -> None:
    names = ("a.mask.png", "a.png", "b-masklabel.png", "b.png", "c.png", "c.depth.png", "alone.mask.png")
    tars.files.write("a.tar", tar(*(member(name, image_bytes(i)) for i, name in enumerate(names))))
    tars.run()
    assert masks(tars) == {
        "a.tar//a.png": "a.tar//a.mask.png",
        "a.tar//alone.mask.png": None,
        "a.tar//b.png": "a.tar//b-masklabel.png",
        "a.tar//c.png": None,
    }
    assert (tars.result["masks"], tars.result["other_files"]) == (2, {"further images of a sample": 1})


def test_other_endings_of_masks_take_effect_at_once(photos: Photos, tars: Tars) -> None:
    photos.put_images("a.png", "a-matte.png")
    tars.files.write("a.tar", tar(member("a.png", image_bytes(0)), member("a-matte.png", image_bytes(1))))
    for source in (photos, tars):
        assert source.run()["images"] == 2
        assert source.run(mask_endings=["-Matte"])["images"] == 1
        assert next(iter(masks(source).values())) is not None


def test_transparency_is_counted(photos: Photos, tars: Tars) -> None:
    clear = [encoded(noise(i).convert("RGBA")) for i in range(3)]
    photos.put_images("a.png")
    photos.put("b.png", clear[0])
    photos.put("c.png", clear[1])
    photos.put("c.mask.png", clear[2])
    tars.files.write("a.tar", tar(*(member(f"{i}.png", data) for i, data in enumerate([image_bytes(1), *clear]))))
    assert {key: photos.run()[key] for key in ("images", "masks", "alpha")} == {"images": 3, "masks": 1, "alpha": 1}
    assert {name: image.alpha for name, image in photos.images().items()} == {
        "a.png": False, "b.png": True, "c.png": True
    }  # fmt: skip
    assert tars.run()["alpha"] == 3
    assert tars.run(limits={"min_side": 15})["read"] == 0


OTHERS = {
    ".mp4": ("one.mp4", "two.MP4"),
    ".md": ("notes.md",),
    "no ending": ("README",),
    "caption files beside no image": ("lost.txt", "sub/b.caption"),
    "json files beside no image": ("stats.json",),
}


def test_what_is_no_image_is_counted_by_kind(photos: Photos) -> None:
    photos.put_images("a.png")
    for name in (name for names in OTHERS.values() for name in names):
        photos.put(name, "words")
    photos.put("old.tar", "words")
    photos.put(".hidden", "words")
    expected = {kind: len(names) for kind, names in OTHERS.items()} | {"archive files of another layout": 1}
    for _ in range(2):  # the second time nothing is read
        result = photos.run()
        assert result["other_files"] == expected
    summary = STEP.summary(photos.result | {"new": 1}, {}).replace("\xa0", " ")
    assert summary == "1 image, 0 rejected, 8 other files: .mp4 2, …", "as many kinds as fit into a line"


def test_what_is_no_image_in_a_tar_is_counted_by_kind(tars: Tars) -> None:
    good = member("a.png", image_bytes(1))
    tars.files.write("a.tar", tar(good, *(member(name, b"{}") for names in OTHERS.values() for name in names)))
    tars.files.write("b.tar", tar(member("b.png", image_bytes(2)), member("b.mp4", b"")))
    tars.files.write("a_stats.json", b"{}")
    for _ in range(2):
        assert tars.run()["other_files"] == {
            ".mp4": 3,
            "caption files beside no image": 2,
            "json files beside no image": 2,
            ".md": 1,
            "no ending": 1,
        }
    assert tars.reasons() == {}


def test_endings_without_end_are_counted_together(photos: Photos) -> None:
    photos.put_images("a.png")
    for number in range(30):
        photos.put(f"x.{number:02d}", "words")
    photos.put("x." + "y" * 200, "words")
    counted = photos.run()["other_files"]
    assert (len(counted), sum(counted.values()), counted["others"]) == (21, 31, 11)
    assert max(map(len, counted)) <= 20


def test_too_many_rejections_end_the_step_with_reasons_and_fixes(photos: Photos) -> None:
    photos.put_images("a.png", "b.png")
    for number in range(3):
        photos.put(f"{number}.jpg", "words")
    photos.put("empty.png", b"")
    photos.put("twin.png", image_bytes(0))
    expected = (
        "4 of 6 images were rejected, more than ingest.max_rejected accepts (50%):\n"
        "  3 × not-an-image: remove the file, or save it as JPEG or PNG (such as '0.jpg': begins with b'words'; "
    )
    for _ in range(2):  # also if nothing has changed
        with pytest.raises(DataError) as caught:
            photos.run(max_rejected=0.5)
        assert str(caught.value).startswith(expected)
        assert "\n  1 × empty-file: copy the file again" in str(caught.value)
        assert str(caught.value).endswith("to go on without them, set ingest.max_rejected to 1")
    result = photos.run(max_rejected=0.7)
    assert (result["read"], result["images"], result["rejected"]) == (0, 2, 5)  # what was read is kept
    assert result["reasons"] == {"not-an-image": 3, "duplicate": 1, "empty-file": 1}
    assert photos.run(max_rejected=None)["images"] == 2


@pytest.mark.parametrize("kind", ["duplicates", "metadata"])
def test_what_loses_no_image_ends_no_step(photos: Photos, kind: str) -> None:
    photos.put_images("a.png")
    for number in range(5):
        if kind == "duplicates":
            photos.put(f"twin-{number}.png", image_bytes(0))
    if kind == "metadata":
        photos.put("metadata.jsonl", "\n".join(json.dumps({"file_name": f"{number}.png"}) for number in range(5)))
    assert photos.run(max_rejected=0.01)["rejected"] == 5


def test_an_image_that_waits_for_a_decoder_is_read_once_it_is_installed(
    photos: Photos, tars: Tars, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encoded(Image.new("RGB", (32, 32), "red"), "HEIF")
    photos.put_images("a.png")
    photos.put("photo.heic", data)
    photos.put("renamed.jpg", encoded(Image.new("RGB", (40, 32), "red"), "HEIF"))
    tars.files.write("a.tar", tar(member("a.png", image_bytes(0)), member("photo.heic", data)))
    with monkeypatch.context() as without:
        without.setattr(optional_formats, "_module", lambda format: None)
        assert (photos.run()["images"], tars.run()["images"]) == (1, 1)
        assert photos.rejected() == dict.fromkeys(("photo.heic", "renamed.jpg"), "decoder-missing")
        assert tars.reasons() == {"a.tar//photo.heic": "decoder-missing"}
    assert (photos.run()["images"], tars.run()["images"]) == (3, 2)
    assert (photos.rejected(), tars.reasons()) == ({}, {})
    assert {image.format for image in photos.images().values()} == {"PNG", "HEIF"}


def test_records_of_another_format_are_made_again(photos: Photos) -> None:
    photos.put_images("a.png")
    key = f"ingest/{photos.run()['source_id']}/manifest.json"
    values: dict[str, Any] = photos.work.read_json(key)
    values["format"] = 2
    photos.work.write_json(key, values)
    with pytest.raises(DataError, match="not of format 3"):
        read_manifest(photos.work, photos.result["source_id"])
    assert photos.run()["images"] == 1
    assert read_manifest(photos.work, photos.result["source_id"]).images == 1
