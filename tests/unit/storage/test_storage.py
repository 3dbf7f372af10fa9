"""One contract, kept by every storage, and how places are named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from components.errors import ConfigError, DataError, NotFound, StorageError
from components.storage import base
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from tests.stores.memory import MemoryStorage

BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../../b",
    "a/.",
    "a\0b",
    ".darkroom-tmp-1",
    "a/.darkroom-tmp-1",
]
STRANGE_KEYS = [
    "a b",
    " a ",
    'it\'s "quoted"',
    "two\nlines",
    "tab\tand\rreturn",
    "bell\x07",
    "<script>alert(1)</script>",
    "&amp;",
    "50%2fhalf+more?x=1#y",
    "back\\slash",
    "...",
    "-rf",
    "$HOME;`id`",
    "\u2028",
    "e\u0301",
    "\u00e9",
    "\U0001f4f7/\U0001f39e",
]


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind; that in S3 is in a real store."""
    if request.param == "local":
        return LocalStorage(tmp_path / "workdir")
    if request.param == "memory":
        return MemoryStorage(tmp_path.name)
    return cast(Storage, request.getfixturevalue("s3"))


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.key for entry in storage.list(prefix)]


# What every storage promises.


def test_a_written_object_reads_back(storage: Storage) -> None:
    data = bytes(range(256)) * 40
    storage.write("some/key", b"earlier")
    storage.write("some/key", data)
    storage.write("empty", b"")
    assert storage.read("some/key") == data
    assert storage.read("empty") == b""
    assert storage.exists("some/key")


def test_a_part_reads_as_of_a_file(storage: Storage) -> None:
    storage.write("key", b"0123456789")
    storage.write("empty", b"")
    for start in (0, 3, 9, 10, 99):
        for length in (None, 0, 1, 4, 99):
            assert storage.read("key", start, length) == b"0123456789"[start:][:length]
            assert storage.read("empty", start, length) == b""


def test_negative_parts_are_rejected(storage: Storage) -> None:
    storage.write("key", b"0123456789")
    for start, length in ((-1, None), (0, -1), (-5, 5)):
        with pytest.raises(StorageError, match="negative"):
            storage.read("key", start, length)


@pytest.mark.parametrize("key", ["absent", "folder", "folder/absent", "folder/file/absent"])
def test_missing_key_is_named_with_its_storage(storage: Storage, tmp_path: Path, key: str) -> None:
    storage.write("folder/file", b"here")
    for attempt in (
        lambda: storage.read(key),
        lambda: storage.read(key, 0, 0),
        lambda: storage.read(key, 5, 2),
        lambda: storage.entry(key),
        lambda: storage.download(key, tmp_path / "copy"),
        lambda: storage.read_json(key),
        lambda: storage.read_lines(key),
    ):
        with pytest.raises(NotFound) as caught:
            attempt()
        assert repr(key) in str(caught.value)
        assert storage.url in str(caught.value)
    assert not storage.exists(key)
    assert not (tmp_path / "copy").exists()


def test_deleting_what_is_absent_is_fine(storage: Storage) -> None:
    storage.delete("absent")
    storage.delete_tree("absent")
    storage.write("folder/file", b"here")
    storage.delete("folder")
    storage.delete_tree("folder/file")
    storage.delete("folder/file/deeper")
    assert keys(storage) == ["folder/file"]


def test_nothing_lists_nothing(storage: Storage) -> None:
    assert keys(storage) == []
    assert keys(storage, "absent") == []


def test_create_never_replaces(storage: Storage) -> None:
    assert storage.create("lock", b"first")
    assert not storage.create("lock", b"second")
    assert not storage.create("lock", b"first")
    assert storage.read("lock") == b"first"
    storage.delete("lock")
    assert storage.create("lock", b"third")
    assert keys(storage) == ["lock"]


def test_of_many_creators_one_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda rank: storage.create("a/lock", b"%d" % rank), range(8)))
    winners = [b"%d" % rank for rank in range(8) if won[rank]]
    assert storage.read("a/lock") in winners
    if not storage.url.startswith("s3:"):  # Swift may let in several that come at the same moment; Amazon S3 does not
        assert len(winners) == 1


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_could_lead_out_are_rejected(storage: Storage, tmp_path: Path, key: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    for attempt in (
        lambda: storage.read(key),
        lambda: storage.write(key, b"data"),
        lambda: storage.create(key, b"data"),
        lambda: storage.append(key, b"data"),
        lambda: storage.upload(key, source),
        lambda: storage.download(key, tmp_path / "copy"),
        lambda: storage.exists(key),
        lambda: storage.entry(key),
        lambda: storage.delete(key),
    ):
        with pytest.raises(StorageError, match="is not a key"):
            attempt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("prefix", ["/", "..", "../a", "a//b", "/a", "a/../.."])
def test_folders_that_could_lead_out_are_rejected(storage: Storage, prefix: str) -> None:
    for attempt in (
        lambda: storage.child(prefix),
        lambda: storage.list(prefix),
        lambda: storage.delete_tree(prefix),
        lambda: storage.local_path(prefix),
    ):
        with pytest.raises(StorageError, match="is not a key"):
            attempt()


def test_a_whole_storage_is_never_deleted_by_an_empty_name(storage: Storage) -> None:
    storage.write("key", b"data")
    with pytest.raises(StorageError, match="is not a key"):
        storage.delete_tree("")
    assert keys(storage) == ["key"]


def test_strange_keys_are_ordinary(storage: Storage) -> None:
    strange = [f"deep/{key}" for key in STRANGE_KEYS]
    for number, key in enumerate(strange):
        storage.write(key, b"%d" % number)
    listed = list(storage.list("deep"))
    assert [entry.key for entry in listed] == sorted(strange)
    for number, key in enumerate(strange):
        assert storage.read(key) == b"%d" % number
        assert storage.entry(key) in listed
    storage.delete(strange[2])
    assert keys(storage) == sorted({*strange} - {strange[2]})
    storage.delete_tree("deep")
    assert keys(storage) == []


def test_a_listing_is_in_code_point_order_of_whole_keys(storage: Storage) -> None:
    # "-" and "." sort before "/" and "0" after it; U+FFEE sorts before an emoji, which UTF-16 would have the other way.
    written = ["b", "a0", "a/z", "a/b/c", "a/b-c", "a/b.c", "a-", "a.txt", "Z", "\u00e9", "\uffee", "\U0001f4f7"]
    for key in written:
        storage.write(key, b"")
    assert keys(storage) == sorted(written)
    assert keys(storage) == sorted(written, key=str.encode)


def test_a_prefix_is_a_folder(storage: Storage) -> None:
    for key in ("runs/a", "runs/ab/1", "runs/abc", "runs/ab/2/3", "run"):
        storage.write(key, b"")
    assert keys(storage, "runs/ab") == ["runs/ab/1", "runs/ab/2/3"]
    assert keys(storage, "runs/ab/") == ["runs/ab/1", "runs/ab/2/3"]
    assert keys(storage, "runs/a") == []
    assert keys(storage, "ru") == []


def test_delete_tree_leaves_the_neighbours(storage: Storage) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "a-", "c"):
        storage.write(key, b"")
    storage.delete_tree("a")
    assert keys(storage) == ["a-", "ab/3", "c"]


def test_a_child_is_the_same_place_one_folder_down(storage: Storage) -> None:
    child = storage.child("runs").child("first/")
    child.write("a/b", b"data")
    assert storage.read("runs/first/a/b") == b"data"
    assert keys(child) == ["a/b"]
    assert keys(child, "a") == ["a/b"]
    assert open_storage(child.url).read("a/b") == b"data"
    assert keys(storage.child("")) == ["runs/first/a/b"]
    child.delete_tree("a")
    assert keys(storage) == []


def test_entries_tell_size_and_change(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/key", b"12345")
    first = storage.entry("a/key")
    assert first == storage.entry("a/key")
    assert list(storage.list()) == [first]
    assert (first.key, first.size) == ("a/key", 5)
    path = storage.local_path("a/key")
    if path is not None:  # a disk's clock may tick slower than two writes follow each other
        os.utime(path, ns=(0, 0))
        first = storage.entry("a/key")
    storage.write("a/key", b"54321")
    assert storage.entry("a/key").modified != first.modified


def test_a_dated_listing_tells_when_each_object_was_written(storage: Storage) -> None:
    before = time.time()
    for key in ("a/b", "a-", "c"):
        storage.write(key, b"12345")
    dated = list(storage.list_dated())
    assert [(listed.key, listed.size) for listed in dated] == [(entry.key, entry.size) for entry in storage.list()]
    knows_times = not storage.url.startswith("memory:")
    assert all(before - 2 <= listed.written <= time.time() + 2 for listed in dated) == knows_times
    assert [listed.key for listed in storage.child("a").list_dated()] == ["b"]
    assert list(storage.list_dated("nowhere")) == []


def test_a_storage_without_killed_writers_holds_nothing_unfinished(storage: Storage) -> None:
    storage.write("a/b", b"data")
    assert list(storage.list_unfinished()) == list(storage.list_unfinished("a")) == []


def test_files_go_up_and_come_down(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    source, copy = tmp_path / "source", tmp_path / "new" / "folder" / "copy"
    source.write_bytes(data)
    storage.upload("a/key", source)
    assert storage.read("a/key") == data
    for _ in range(2):  # the second time it replaces the first copy
        storage.download("a/key", copy)
        assert copy.read_bytes() == data
    assert list(copy.parent.iterdir()) == [copy]


def test_a_failed_download_leaves_the_earlier_copy(storage: Storage, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(b"earlier")
    with pytest.raises(NotFound):
        storage.download("absent", copy)
    assert copy.read_bytes() == b"earlier"


def test_transfers_name_the_local_file_that_fails(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage.write("key", b"data")
    with pytest.raises(StorageError, match="nowhere"):
        storage.upload("key", tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"below.*same name"):
        storage.download("key", tmp_path / "file" / "below")
    assert storage.read("key") == b"data"


def test_append_adds_to_the_end(storage: Storage) -> None:
    for data in (b"one\n", b"", b"two\n"):
        storage.append("new/log", data)
    assert storage.read("new/log") == b"one\ntwo\n"


def test_json_reads_back_and_is_the_same_bytes_each_time(storage: Storage) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"caption": "line\nbreak \u2028 \U0001f4f7 \udc80"}}
    storage.write_json("value.json", value)
    assert storage.read_json("value.json") == value
    first = storage.read("value.json")
    storage.write_json("value.json", dict(reversed(value.items())))
    assert storage.read("value.json") == first
    assert first.isascii()
    assert first.endswith(b"\n")


@pytest.mark.parametrize("count", [3, 4, 5, 50])
def test_lines_beyond_those_kept_in_memory_are_written_in_their_order(
    storage: Storage, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LINES_IN_MEMORY", 4)
    records = [{"n": number} for number in range(count)]
    storage.write_lines("many.jsonl", iter(records))
    assert list(storage.read_lines("many.jsonl")) == records


def test_json_lines_read_back(storage: Storage) -> None:
    records = [{"name": "a\nb\u2028\u0085", "n": 1}, {"name": "\udcff", "n": 2}]
    storage.write_lines("records.jsonl", iter(records))
    storage.append_lines("records.jsonl", [{"n": 3}])
    storage.write_lines("none.jsonl", [])
    assert list(storage.read_lines("records.jsonl")) == [*records, {"n": 3}]
    assert storage.read("records.jsonl").count(b"\n") == 3
    storage.write("foreign.jsonl", '\n{"name": "a\u2028b\u0085"}\r\n\n{"n": 2}'.encode())
    assert list(storage.read_lines("foreign.jsonl")) == [{"name": "a\u2028b\u0085"}, {"n": 2}]
    assert list(storage.read_lines("none.jsonl")) == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff{}", b"{'a': 1}"])
def test_what_is_not_json_is_bad_data(storage: Storage, data: bytes) -> None:
    storage.write("value.json", data)
    with pytest.raises(DataError, match=r"value\.json.* is not JSON"):
        storage.read_json("value.json")


@pytest.mark.parametrize("line", [b'{"torn": ', b"[1]", b"7", b"\xff"])
def test_a_bad_line_is_named_by_its_number(storage: Storage, line: bytes) -> None:
    storage.write("records.jsonl", b'{"n": 1}\n' + line)
    records = storage.read_lines("records.jsonl")
    assert next(records) == {"n": 1}
    with pytest.raises(DataError, match=r"records\.jsonl:2"):
        next(records)


def test_json_rejects_what_json_does_not_have(storage: Storage) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        storage.write_json("value.json", {"loss": float("nan")})
    for number in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="not JSON"):
            storage.write_lines("records.jsonl", [{"loss": number}])
        with pytest.raises(ValueError, match="not JSON"):
            storage.append_lines("records.jsonl", [{"loss": 1.0}, {"loss": number}])
    assert keys(storage) == []


# How places are named.


def test_urls_of_local_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    open_storage("some folder/50%").write("key", b"data")
    for url in (
        tmp_path.as_uri() + "/some%20folder/50%25",
        f"file://localhost{tmp_path}/some%20folder/50%25/",
        str(tmp_path / "some folder" / "50%"),
        "./some folder/../some folder/50%",
        "~/some folder/50%",
        open_storage("some folder/50%").url,
    ):
        assert open_storage(url).read("key") == b"data"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a\0b",
        "s3://",
        "s3:///prefix",
        "s3://bucket/../b",
        "s3://bucket/a//b",
        "gs://bucket",
        "file://a",
        "ftp://host/folder",
    ],
)
def test_urls_that_name_no_place(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert repr(url) in str(caught.value)


def test_memory_is_shared_by_name_only() -> None:
    open_storage("memory://one/a").write("key", b"data")
    assert open_storage("memory://one").read("a/key") == b"data"
    assert keys(open_storage("memory://two")) == []


def test_opening_a_local_folder_does_not_import_boto3() -> None:
    program = (
        "import sys; from components.storage.open import open_storage; open_storage('x'); "
        "assert 'boto3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=True)
