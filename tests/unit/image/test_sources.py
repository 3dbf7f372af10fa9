"""A source reads the files of its folder and nothing else, and tells this machine's errors from a file's."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.errors import ConfigError, DataError, ImageRejected, StorageError
from components.image.examples.digits import read_digits
from components.image.sources import FolderSource, Source, StorageSource, open_source
from components.storage.base import Entry
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage


def names(source: Source) -> list[str]:
    return [file.name for file in source.list() if file.rejection is None]


def rejections(source: Source) -> dict[str, str]:
    return {file.name: file.rejection.reason for file in source.list() if file.rejection is not None}


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_files_are_listed_at_any_depth_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.png", "a.png", "a/b/c.png", "a-.png", "é.png"):
        put(tmp_path / name)
    listed = names(open_source(str(tmp_path)))
    assert listed == sorted(listed)
    assert set(listed) == {"b.png", "a/z.png", "a.png", "a/b/c.png", "a-.png", "é.png"}


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    for name in ("visible.png", "._visible.png", ".thumbnails/visible.png"):
        put(tmp_path / name)
    assert names(open_source(str(tmp_path))) == ["visible.png"]


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    put(tmp_path.joinpath(*["d"] * 200, "deep.png"))
    source = open_source(str(tmp_path))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        assert names(source) == ["d/" * 200 + "deep.png"]
    finally:
        sys.setrecursionlimit(limit)


def test_the_tag_changes_with_the_content_even_when_the_time_is_put_back(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", b"before")
    (first,) = open_source(str(tmp_path)).list()
    kept = path.stat()
    path.write_bytes(b"after!")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    (second,) = open_source(str(tmp_path)).list()
    assert (first.name, first.size) == (second.name, second.size)
    assert first.modified != second.modified


def test_the_same_folder_is_the_same_source_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    written = ["photos", "./photos/", f"{tmp_path}/photos", f"file://{tmp_path}/photos", "photos/../photos"]
    assert len({open_source(url).id for url in written}) == 1


def test_a_link_to_a_file_inside_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "a.png", b"data")
    (tmp_path / "b.png").symlink_to("a.png")
    source = open_source(str(tmp_path))
    assert names(source) == ["a.png", "b.png"]
    assert source.read("b.png") == b"data"


def test_a_source_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    put(tmp_path / "version-1/a.png", b"data")
    (tmp_path / "photos").symlink_to("version-1")
    source = open_source(str(tmp_path / "photos"))
    assert names(source) == ["a.png"]
    assert source.read("a.png") == b"data"


def test_links_out_of_the_folder_are_rejected_in_the_listing_and_in_reading(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/secret.png")
    put(tmp_path / "photos/a.png")
    (tmp_path / "photos/file.png").symlink_to("../elsewhere/secret.png")
    (tmp_path / "photos/folder").symlink_to("../elsewhere")
    source = open_source(str(tmp_path / "photos"))
    assert names(source) == ["a.png"]
    assert rejections(source) == {"file.png": "symlink-outside", "folder/": "symlink-outside"}
    for name in ("file.png", "folder/secret.png", "../elsewhere/secret.png"):
        with pytest.raises(ImageRejected, match="symlink-outside"):
            source.read(name)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path / "sub/a.png")
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    source = open_source(str(tmp_path))
    assert names(source) == ["sub/a.png"]
    assert rejections(source) == dict.fromkeys(["gone.png", "one.png", "two.png"], "unreadable")


def test_a_file_that_vanished_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ImageRejected, match="unreadable"):
        open_source(str(tmp_path)).read("gone.png")
    with pytest.raises(ImageRejected, match="unreadable"):
        open_source("memory://sources-vanished").read("gone.png")


def test_an_error_of_this_machine_rejects_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")
    source = open_source(str(tmp_path))

    def no_more_files(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", no_more_files)
    with pytest.raises(StorageError, match=r"a\.png"):
        source.read("a.png")


def test_a_missing_folder_and_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos.*ingest\.source"):
        open_source(str(tmp_path / "photos"))
    put(tmp_path / "photos")
    with pytest.raises(DataError, match=r"photos.*a file.*ingest\.source"):
        FolderSource(tmp_path / "photos")


def test_an_address_of_another_kind_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="ftp://"):
        open_source("ftp://example.org/photos")


def test_a_store_is_a_source_too() -> None:
    storage = open_storage("memory://sources-store/photos")
    for key in ("b/c.png", "a.png", ".hidden/d.png"):
        storage.write(key, key.encode())
    source = open_source("memory://sources-store/photos")
    assert names(source) == ["a.png", "b/c.png"]
    assert source.read("b/c.png") == b"b/c.png"
    (before, _) = source.list()
    storage.write("a.png", b"other")
    (after, _) = source.list()
    assert before.modified != after.modified


def test_a_store_may_hold_names_that_are_no_keys() -> None:
    class Odd(MemoryStorage):
        def list(self, prefix: str = "") -> Iterator[Entry]:
            names = ["../up.png", "a.png", "b//c.png"]  # what any client may have put into a bucket
            return (Entry(name, 1, "tag") for name in names)

    source = StorageSource(Odd("sources-odd"))
    assert names(source) == ["a.png"]
    assert rejections(source) == {"../up.png": "unusable-name", "b//c.png": "unusable-name"}


def test_the_example_is_there_on_every_machine_and_is_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    pixels, digits = read_digits()
    theirs = load_digits()
    assert np.array_equal(pixels, theirs.images)
    assert np.array_equal(digits, theirs.target)
    source = open_source("example:digits")
    files = list(source.list())
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert (len(files), files[0].name, files[-1].name) == (2 * 1797, "0000-zero.png", "1796-eight.txt")
    assert all(len(source.read(file.name)) == file.size for file in files)
    assert source.read("0013-three.txt", 2, 11) == b"handwritten"
    assert source.url == "example:digits"


@pytest.mark.parametrize("url", ["example:digit", "example:", "example:digits/more"])
def test_an_example_that_is_not_there_names_the_one_that_is(url: str) -> None:
    with pytest.raises(ConfigError, match=r"no such example; expected example:digits, a folder"):
        open_source(url)
    with pytest.raises(ImageRejected, match="no 'nothing'"):
        open_source("example:digits").read("nothing")
