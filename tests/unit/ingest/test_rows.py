"""Parquet and Arrow files are read as what they hold; what is bad in them is rejected by file and row."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.digests import sha256
from components.errors import ConfigError, DataError
from components.image.records import ImageRecord, Rejection, read_images, read_ingest_rejections, read_manifest
from components.image.rejections import FIXES
from components.image.sources import open_images
from components.ingest.config import IngestConfig
from components.ingest.imports import conversion
from components.ingest.imports.png import png
from components.ingest.imports.splits import split_of
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.base import Storage, join
from components.storage.open import open_storage
from pipeline.datasets.damage import check_workdir
from tests.bad_rows import ALL, ROW_FILES, arrow, hdf5, images, parquet, pixels, table, with_pickle
from tests.images import image_bytes, put
from tests.stores.memory import MemoryStorage


class Imported:
    """What ingest makes of a source with files of rows."""

    def __init__(self, url: str, work: Storage, **settings: Any) -> None:
        rows = {"isolated": False, **settings.pop("rows", {})}
        config = IngestConfig.parse({"source": url, "max_rejected": None, "rows": rows, **settings})
        self.log = io.StringIO()
        self.work = work
        self.result = ingest(config, work, Progress(self.log))
        self.manifest = read_manifest(work, self.result["source_id"])

    def images(self) -> list[ImageRecord]:
        groups = self.manifest.groups
        records = [one for group in groups for one in read_images(self.work, self.result["source_id"], group)]
        return sorted(records, key=lambda image: image.name)

    def captions(self) -> list[str]:
        return ["-" if one.caption is None else one.caption.text or "" for one in self.images()]

    def rejections(self) -> list[Rejection]:
        return read_ingest_rejections(self.work, self.result["source_id"])

    def reasons(self) -> dict[str, str]:
        return {one.name: one.reason for one in self.rejections()}

    def tars(self) -> dict[str, bytes]:
        return {entry.key: self.work.read(entry.key) for entry in self.work.list("imports")}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """What becomes of all kinds of file, which lie in one source."""
    root = tmp_path_factory.mktemp("rows")
    for kind, file in ROW_FILES.items():
        put(root / f"{kind}.{file.ending}", file.data(), None)
    work = MemoryStorage("row-kinds")
    return Imported(str(root), work, limits={"max_bytes": 1 << 20, "min_side": 1}, extensions=[".png"])


@pytest.mark.parametrize("kind", ROW_FILES)
def test_a_file_is_read_right_or_rejected(everything: Imported, kind: str) -> None:
    file = ROW_FILES[kind]
    name, key = f"{kind}.{file.ending}", f"{kind.replace(' ', '_')}.{file.ending}"
    rejections = [one for one in everything.rejections() if one.name.startswith((name, f"{key}-"))]
    duplicates = {one.name: one for one in rejections if one.reason == "duplicate"}
    records = [one for one in everything.images() if one.name.startswith(f"{key}-")]
    assert len(records) + len(duplicates) == len(file.kept)
    found = {_place(one.name): one.reason for one in rejections if one.reason != "duplicate"}
    assert found == file.rejected
    assert all(one.detail and one.reason in FIXES for one in rejections)


def _place(name: str) -> int | str:
    row = re.search(r":(\d+)$", name)
    if row is not None:
        return int(row[1])
    member = re.search(r"//(\d+)\.\w+@", name)
    return f"image {int(member[1])}" if member is not None else "file"


@pytest.mark.parametrize("kind", [kind for kind, file in ROW_FILES.items() if file.kept])
def test_captions_come_from_the_columns(tmp_path: Path, kind: str) -> None:
    file = ROW_FILES[kind]
    put(tmp_path / f"a.{file.ending}", file.data(), None)
    read = Imported(str(tmp_path), MemoryStorage(f"rows-{kind}"), limits={"max_bytes": 1 << 20})
    assert tuple(read.captions()) == file.kept
    source = open_images(read.manifest, read.work)
    assert {source.read(image.name) for image in read.images()} <= set(images()) or file.ending == "h5"


def test_there_are_many_kinds() -> None:
    assert len(ROW_FILES) >= 50


def test_nothing_in_a_file_is_opened_as_a_pickle(tmp_path: Path) -> None:
    put(tmp_path / "in/a.arrow", with_pickle(tmp_path / "trap"), None)
    assert Imported(str(tmp_path / "in"), MemoryStorage("rows-pickle")).result["images"] == 3
    assert not (tmp_path / "trap").exists()


def test_a_class_becomes_the_folder_and_the_name_is_in_the_metadata(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a/b", "dress"]}}
    put(tmp_path / "a.parquet", parquet(table(features, label=[1, 0, 7], text=None)), None)
    names = [image.name for image in Imported(str(tmp_path), MemoryStorage("rows-class")).images()]
    assert [name.partition("//")[2].partition("@")[0] for name in names] == [
        "000000002.png",
        "a b/000000001.png",
        "dress/000000000.png",
    ]


def test_images_that_a_row_names_are_read_from_beside_the_file(tmp_path: Path) -> None:
    for number, data in enumerate(images()):
        put(tmp_path / f"sub/x/{number}.png", data, None)
    rows = table(image=[{"bytes": None, "path": f"x/{number}.png"} for number in range(3)])
    put(tmp_path / "sub/a.parquet", parquet(rows), None)
    read = Imported(str(tmp_path), MemoryStorage("rows-paths"), layout="parquet")
    assert read.captions() == list(ALL)
    put(tmp_path / "sub/a.parquet", parquet(table(image=None, file_name=["x/0.png", "x/1.png", "x/gone.png"])), None)
    read = Imported(str(tmp_path), MemoryStorage("rows-paths"), layout="parquet")
    assert (read.captions(), read.reasons()) == (["a", "b"], {"sub/a.parquet:2": "unreadable"})
    put(tmp_path / "sub/x/gone.png", images()[2], None)  # it was not there, so the file is looked at again
    assert Imported(str(tmp_path), MemoryStorage("rows-paths"), layout="parquet").captions() == list(ALL)


def test_only_the_split_for_training_is_read_unless_more_are_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate(("data/train-00000-of-00001", "data/validation-00000-of-00001", "test/data-00000")):
        put(tmp_path / f"{name}.parquet", parquet(table(image=images(first=10 * number))), None)
    put(tmp_path / "cache-0123.arrow", b"", None)
    put(tmp_path / "README.md", b"---\n", None)
    read = Imported(str(tmp_path), MemoryStorage("rows-splits"))
    assert read.result["images"] == 3
    assert read.result["other_files"] == {
        "files of split validation": 1, "files of split test": 1, "cache files of datasets": 1, ".md": 1,
    }  # fmt: skip
    assert Imported(str(tmp_path), MemoryStorage("s"), rows={"splits": []}).result["images"] == 9
    assert Imported(str(tmp_path), MemoryStorage("s"), rows={"splits": ["test"]}).result["images"] == 3
    with pytest.raises(DataError, match=r"no .parquet or .arrow files of split dev .*1 files of split test"):
        Imported(str(tmp_path), MemoryStorage("s"), rows={"splits": ["dev"]})


def test_the_split_of_a_name() -> None:
    names = {
        "train-00000-of-00002.parquet": "train",
        "data/test-0.parquet": "test",
        "val/x.arrow": "validation",
        "contest.parquet": "train",
        "a/TEST/data-00000-of-00001.arrow": "test",
        "test/train.parquet": "train",
        "my_dev_set.parquet": "validation",
    }
    assert {name: split_of(name) for name in names} == names


def test_a_folder_that_datasets_saved_to_disk(tmp_path: Path) -> None:
    put(tmp_path / "dataset_dict.json", b'{"splits": ["train", "test"]}', None)
    for number, split in enumerate(("train", "test")):
        folder = tmp_path / split
        put(folder / "data-00000-of-00001.arrow", arrow(table(image=images(first=10 * number))), None)
        put(folder / "state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}', None)
        put(folder / "dataset_info.json", b"{}", None)
    read = Imported(str(tmp_path), MemoryStorage("rows-saved"))
    assert (read.captions(), read.result["other_files"]["files of split test"]) == (list(ALL), 1)


@pytest.mark.parametrize("url", ["a.parquet", "a.tar"])
def test_one_file_is_a_source_too(tmp_path: Path, url: str) -> None:
    from tests.tars import member, tar

    data = parquet() if url.endswith("parquet") else tar(member("0.png", image_bytes(0)))
    put(tmp_path / url, data, None)
    put(tmp_path / "b.parquet", parquet(table(image=images(first=50))), None)
    expected = set(images() if url.endswith("parquet") else images(1))
    open_storage("memory://rows-one/x").write(url, data)
    for place in (str(tmp_path / url), f"memory://rows-one/x/{url}"):
        read = Imported(place, MemoryStorage("rows-one-work"))
        source = open_images(read.manifest, read.work)
        assert {source.read(image.name) for image in read.images()} == expected
    with pytest.raises(DataError, match="does not exist"):
        Imported("memory://rows-one/x/gone.parquet", MemoryStorage("rows-one-work"))


def test_images_beside_rows_come_first(tmp_path: Path) -> None:
    put(tmp_path / "00000.parquet", parquet(), None)
    put(tmp_path / "a.png", image_bytes(77))
    read = Imported(str(tmp_path), MemoryStorage("rows-beside"))
    assert (read.result["images"], read.result["other_files"]) == (1, {".parquet": 1})


def test_the_column_can_be_named(tmp_path: Path) -> None:
    rows = table(image=None, a=images(), b=images(first=5), text=None, fr=["x", "y", "z"], en=["a", "b", "c"])
    put(tmp_path / "a.parquet", parquet(rows), None)
    with pytest.raises(DataError, match=r"several could be the image.*ingest.rows.image.*: a, b; its columns: a, b, f"):
        Imported(str(tmp_path), MemoryStorage("rows-named"))
    named = {"image": "b", "caption": "en"}
    assert Imported(str(tmp_path), MemoryStorage("rows-named"), rows=named).captions() == list(ALL)
    for name, problem in (("caption", "no column of text"), ("image", "no column that could be an image")):
        with pytest.raises(DataError, match=f"{problem} is called 'gone'.*; its columns: a, b, fr, en"):
            Imported(str(tmp_path), MemoryStorage("rows-named"), rows={**named, name: "gone"})


def test_only_a_file_that_has_changed_is_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = MemoryStorage("rows-changes")
    for number in range(3):
        put(tmp_path / f"{number}.parquet", parquet(table(image=images(first=10 * number))), None)
    assert Imported(str(tmp_path), work).result["images"] == 9
    before = {entry.key: entry.modified for entry in work.list("imports")}
    assert len(before) == 6
    (tmp_path / "0.parquet").unlink()
    put(tmp_path / "1.parquet", parquet(table(image=images(2, 40), text=["x", "y"])), None)
    again = Imported(str(tmp_path), work)
    assert again.result["images"] == 5
    assert [key[key.rindex("imports") :].split("/")[2][:2] for key in again.tars()] == ["1.", "1.", "2.", "2."]
    after = {entry.key: entry.modified for entry in work.list("imports")}
    assert {key for key in after if before[key] == after[key]} == {key for key in after if "/2.parquet" in key}
    read = Imported(str(tmp_path), work)
    assert (read.result["read"], read.result["new"]) == (0, 0)
    assert after == {entry.key: entry.modified for entry in work.list("imports")}


class Killed(BaseException):
    """The process ends here."""


class Dying(MemoryStorage):
    """Ends the process before one of the writes."""

    left = 10**9

    def _count(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1

    def write(self, key: str, data: bytes) -> None:
        self._count()
        super().write(key, data)

    def upload(self, key: str, path: Path) -> None:
        self._count()
        super().upload(key, path)

    def child(self, prefix: str) -> Dying:
        child = Dying(self._name, join(self._prefix, prefix))
        child._count = self._count  # type: ignore[method-assign]
        return child


def test_an_import_that_is_killed_at_any_write_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "TAR_BYTES", 3000)
    rows = table(image=[*images(4), None, *images(4, 10)], text=list("abcdefghi"))
    put(tmp_path / "a.parquet", parquet(rows, row_group_size=2), None)
    put(tmp_path / "b.arrow", arrow(table(image=images(first=30))), None)
    whole = Imported(str(tmp_path), MemoryStorage("rows-whole"))
    expected = {key.partition("/")[2]: data for key, data in whole.tars().items()}
    assert len(expected) > 6
    for deaths in range(40):
        work = Dying(f"rows-killed-{deaths}")
        work.left = deaths
        try:
            Imported(str(tmp_path), work)
        except Killed:
            pass
        else:
            break
        work.left = 10**9
        again = Imported(str(tmp_path), work)
        assert {key.partition("/")[2]: data for key, data in again.tars().items()} == expected
        assert again.result["digest"] == whole.result["digest"]
    assert deaths > len(expected)


def test_fashion_gen_is_read_as_it_is(tmp_path: Path) -> None:
    put(tmp_path / "fashiongen_256_256_train.h5", hdf5(input_name=np.array([[b"x"], [b"y"], [b"z"]])), None)
    put(tmp_path / "fashiongen_256_256_validation.h5", hdf5(), None)
    read = Imported(str(tmp_path), MemoryStorage("rows-fashion"))
    assert read.captions() == ["a caf\xe9", "b", "c"]
    assert read.result["other_files"] == {"files of split validation": 1}
    source = open_images(read.manifest, read.work)
    shown = [np.array(Image.open(io.BytesIO(source.read(image.name)))) for image in read.images()]
    assert np.array_equal(shown, pixels())
    named = Imported(str(tmp_path), MemoryStorage("rows-fashion"), rows={"caption": "input_name"})
    assert named.captions() == ["x", "y", "z"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (300, 200, 4)])
def test_pixels_become_a_png_of_certain_bytes(shape: tuple[int, int, int]) -> None:
    drawn = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    data = png(drawn)
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))).reshape(shape), drawn)
    if shape == (7, 5, 3):
        assert sha256(data) == "7a8c93624853bd63102adf23800871a6947caa9ef71f37ba9f69c181d46e902f"


@pytest.mark.parametrize("ending", ["tar", "jsonl"])
def test_a_damaged_import_is_named_and_made_again(tmp_path: Path, ending: str) -> None:
    put(tmp_path / "in/a.parquet", parquet(), None)
    work = open_storage(str(tmp_path / "work"))
    whole = Imported(str(tmp_path / "in"), work).tars()
    key = next(key for key in whole if key.endswith(ending))
    work.write(key, whole[key][:600] + b"#" + whole[key][601:] if ending == "tar" else whole[key][:-9])
    problems = [one.problem for one in check_workdir(work, 1) if one.problem]
    assert len(problems) == 1
    assert re.search("delete .* run the ingest step again|start again", problems[0])
    for part in whole:
        work.delete(part)
    assert Imported(str(tmp_path / "in"), work).tars() == whole
    assert not [one.problem for one in check_workdir(work, 1) if one.problem]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.parquet", parquet(), None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        Imported(str(tmp_path), MemoryStorage("rows-missing"))


def test_a_process_of_its_own_gives_the_same(tmp_path: Path) -> None:
    put(tmp_path / "in/a.parquet", parquet(table(image=[*images(2), None])), None)
    put(tmp_path / "in/b.arrow", b"words", None)
    reads = [
        Imported(str(tmp_path / "in"), MemoryStorage(f"rows-isolated-{isolated}"), rows={"isolated": isolated})
        for isolated in (True, False)
    ]
    assert reads[0].rejections() == reads[1].rejections()
    assert list(reads[0].tars().values()) == list(reads[1].tars().values())
    assert reads[0].captions() == ["a", "b"]


DEATHS = {"os.kill(os.getpid(), 11)": r"died of it \(SIGSEGV\)", "time.sleep(60)": "take longer than 5 s to read"}


@pytest.mark.parametrize("death", [next(iter(DEATHS)), pytest.param([*DEATHS][1], marks=pytest.mark.proof)])
def test_a_file_that_its_reader_dies_of_is_rejected_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    for number in range(2):
        put(tmp_path / f"in/{number}.parquet", parquet(table(image=images(first=10 * number))), None)
    # A package of that name stands for the bug of the real one, which it becomes the second time.
    here, flag = str(tmp_path / "path"), str(tmp_path / "flag")
    bug = f"if not os.path.exists({flag!r}):\n    open({flag!r}, 'w').close()\n    {death}\n"
    real = f"sys.path.remove({here!r})\ndel sys.modules['pyarrow']\nimport pyarrow\n"
    put(tmp_path / "path/pyarrow/__init__.py", f"import os, sys, time\n{bug}{real}".encode(), None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", ".")]))
    rows = {"isolated": True, "seconds": 5.0 if "sleep" in death else 300.0}
    read = Imported(str(tmp_path / "in"), MemoryStorage("rows-death"), rows=rows)
    assert read.captions() == list(ALL)
    (rejection,) = read.rejections()
    assert (rejection.name, rejection.reason) == ("0.parquet", "table-broken")
    assert re.search(DEATHS[death], rejection.detail)
    assert Imported(str(tmp_path / "in"), MemoryStorage("rows-death"), rows=rows).result["images"] == 6
