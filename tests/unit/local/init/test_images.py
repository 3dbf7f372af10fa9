"""What a source of images holds is found out by the code that reads it later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.errors import DataError
from components.storage.open import open_storage
from pipeline.local.init.images import ImageSurvey, survey_images
from tests.bad_rows import images, parquet, table
from tests.drawn_photos import SCENES, write_photos
from tests.images import encoded, noise, put


def survey(place: Path, workdir: Path) -> ImageSurvey:
    return survey_images([str(place)], open_storage(str(workdir)))


def reasons(found: ImageSurvey) -> dict[str, int]:
    return {rejected.reason: rejected.count for rejected in found.rejected}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("init") / "photos"
    write_photos(folder, per_scene=6)
    return folder


def test_everything_that_a_folder_of_photos_holds_is_said(photos: Path, tmp_path: Path) -> None:
    found = survey(photos, tmp_path)
    assert (found.count, found.seen, found.layout) == (36, 36, "folder")
    assert found.formats == {"JPEG": 18, "BMP": 6, "PNG": 6, "WEBP": 6}
    assert (found.short_sides[0], found.short_sides[-1]) == (160, 288)
    assert reasons(found) == {
        "duplicate": 1, "empty-file": 1, "extreme-aspect": 1, "not-an-image": 1, "too-small": 1, "truncated": 1
    }  # fmt: skip
    assert found.classes == {scene.replace("_", " "): 6 for scene in sorted(SCENES)}
    assert found.captioned == {"folder": 36, "sidecar": 6}
    assert list(found.captions.values()) == sorted(found.captions.values(), reverse=True)
    assert found.captions["a photo of a city at night"] == 5, "the sixth has a caption beside it"
    assert found.licenses == {None: 36}
    assert found.other_files == {".odt": 1}


def test_a_run_in_the_same_workdir_need_not_read_the_images_again(photos: Path, tmp_path: Path) -> None:
    first, second = survey(photos, tmp_path), survey(photos, tmp_path)
    assert second.layout == "", "ingest saw that nothing had changed"
    assert replace(second, layout=first.layout) == first


@pytest.mark.parametrize(
    "names",
    [
        ["a/1.png", "a/2.png"],  # one folder divides nothing
        ["train/1.png", "train/2.png", "val/3.png", "val/4.png"],
        ["2024-05-01/1.png", "2024-05-01/2.png", "2024-05-02/3.png", "2024-05-02/4.png"],
        ["anna/1.png", "berta/2.png", "carla/3.png"],  # a folder for each image says nothing of its kind
    ],
)
def test_folders_that_say_nothing_of_the_images_are_no_captions(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        put(tmp_path / "photos" / name, encoded(noise(number)), words=None)
    found = survey(tmp_path / "photos", tmp_path / "work")
    assert (found.classes, found.captioned, found.captions) == ({}, {}, {})


def test_a_caption_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path / "photos/good.png", encoded(noise(1)), b"a good one")
    put(tmp_path / "photos/bad.png", encoded(noise(2)), b"")
    found = survey(tmp_path / "photos", tmp_path / "work")
    assert found.captions == {"a good one": 1}
    (problem,) = found.rejected
    assert (problem.reason, problem.example) == ("caption-empty", "bad.png")
    assert "bad.txt" in problem.detail


def test_licences_are_counted(tmp_path: Path) -> None:
    for number, text in enumerate(['{"license": "CC0"}', '{"license": "CC0"}', "{}"]):
        image = put(tmp_path / f"photos/{number}.png", encoded(noise(number)), words=None)
        image.with_suffix(".json").write_text(text)
    assert survey(tmp_path / "photos", tmp_path / "work").licenses == {"CC0": 2, None: 1}


def test_a_place_without_a_usable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "bad/a.jpg", b"hello", words=None)
    cases = {"nowhere": "does not exist", "empty": "holds no images", "bad": "1 × not-an-image"}
    for place, words in cases.items():
        with pytest.raises(DataError, match=words) as caught:
            survey(tmp_path / place, tmp_path / "work")
        assert str(tmp_path / place) in str(caught.value)


def test_files_of_rows_are_looked_at_like_images(tmp_path: Path) -> None:
    put(tmp_path / "in/train.parquet", parquet(), None)
    found = survey(tmp_path / "in/train.parquet", tmp_path)
    assert (found.count, found.layout, found.captions) == (3, "parquet", {"a": 1, "b": 1, "c": 1})


def test_a_file_is_read_as_the_settings_of_ingest_say(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", parquet(table(image=None, a=images(), b=images(first=9))), None)
    with pytest.raises(DataError, match=r"several could be the image; name one"):
        survey(tmp_path / "a.parquet", tmp_path)
    given = {"rows.image": "b", "allowed_licenses": [], "rows.splits": ["train", "test"]}
    found = survey_images([str(tmp_path / "a.parquet")], open_storage(str(tmp_path)), given)
    assert (found.count, found.given) == (3, given)


def test_an_image_has_a_caption_if_any_source_of_captions_has_one(tmp_path: Path) -> None:
    for number, name in enumerate(["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png", "5.png", "6.png"]):
        put(tmp_path / "photos" / name, encoded(noise(number)), b"a bird" if name == "5.png" else None)
    found = survey(tmp_path / "photos", tmp_path / "work")
    assert (found.captioned, found.uncaptioned) == ({"folder": 4, "sidecar": 1}, 1)
