"""One contract, kept by every storage; then what is particular to a local folder."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from components.errors import ConfigError, DataError, NotFound, StorageError
from components.storage import Storage, open_storage
from components.storage_local import ABANDONED_NS, LocalStorage
from components.storage_memory import MemoryStorage
from components.storage_s3 import S3Storage, connect

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


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3 server in this process, with one bucket; the environment leads to that server."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        client = connect()
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
    server.stop()


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    if request.param == "local":
        return LocalStorage(tmp_path / "workdir")
    if request.param == "memory":
        return MemoryStorage(tmp_path.name)
    return S3Storage("bucket", f"some{tmp_path}", request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "workdir")


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


def test_negative_parts_are_refused(storage: Storage) -> None:
    storage.write("key", b"0123456789")
    for start, length in ((-1, None), (0, -1), (-5, 5)):
        with pytest.raises(StorageError, match="negative"):
            storage.read("key", start, length)


@pytest.mark.parametrize("key", ["absent", "folder", "folder/absent", "folder/file/absent"])
def test_what_is_absent_is_told_with_key_and_place(storage: Storage, tmp_path: Path, key: str) -> None:
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
    assert won.count(True) == 1
    assert storage.read("a/lock") == b"%d" % won.index(True)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_could_lead_out_are_refused(storage: Storage, tmp_path: Path, key: str) -> None:
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
def test_folders_that_could_lead_out_are_refused(storage: Storage, prefix: str) -> None:
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
    # The test server takes no line breaks; a real S3 store does (tried with OpenStack Swift).
    strange = [f"deep/{key}" for key in STRANGE_KEYS if not (storage.url.startswith("s3://") and "\n" in key)]
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


def test_json_lines_read_back(storage: Storage) -> None:
    records = [{"name": "a\nb\u2028\u0085", "n": 1}, {"name": "\udcff", "n": 2}]
    storage.write_lines("records.jsonl", iter(records))
    storage.append_lines("records.jsonl", [{"n": 3}])
    storage.write_lines("none.jsonl", [])
    assert list(storage.read_lines("records.jsonl")) == [*records, {"n": 3}]
    assert storage.read("records.jsonl").count(b"\n") == 3
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


def test_json_refuses_what_json_does_not_have(storage: Storage) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        storage.write_json("value.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON"):
        storage.write_lines("records.jsonl", [{"loss": float("nan")}])
    assert keys(storage) == []


# What is particular to a local folder.


def test_nothing_is_made_before_the_first_write(local: LocalStorage, tmp_path: Path) -> None:
    local.exists("a/b")
    local.delete("a/b")
    list(local.list())
    local.child("a").local_path()
    assert list(tmp_path.iterdir()) == []


def test_local_paths(local: LocalStorage, tmp_path: Path) -> None:
    local.write("a/b", b"data")
    assert local.local_path("a/b").read_bytes() == b"data"
    assert local.local_path() == tmp_path / "workdir"
    assert local.child("a").local_path("b") == tmp_path / "workdir/a/b"


def test_a_linked_root_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    storage = LocalStorage(tmp_path / "link")
    storage.write("a/b", b"data")
    assert (tmp_path / "disk/a/b").read_bytes() == b"data"
    assert keys(storage) == ["a/b"]


def test_links_are_read_but_listings_stay_inside_and_end(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_bytes(b"outside")
    local.write("a/b", b"data")
    root = local.local_path()
    (root / "file").symlink_to("a/b")
    (root / "a/up").symlink_to("..")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "dangling").symlink_to("nowhere")
    (root / "itself").symlink_to("itself")
    assert keys(local) == ["a/b", "file"]
    assert local.read("file") == b"data"
    assert not local.exists("dangling")
    assert not local.exists("itself")
    assert keys(local, "out") == ["out/secret"]  # asked for by name
    local.delete_tree("out")
    local.delete_tree("a")
    assert (tmp_path / "elsewhere/secret").exists()


def test_only_files_are_listed(local: LocalStorage) -> None:
    local.write("a", b"data")
    os.mkfifo(local.local_path("pipe"))
    assert keys(local) == ["a"]
    assert not local.exists("pipe")


def test_names_that_are_not_unicode_are_listed_and_read(local: LocalStorage) -> None:
    local.write("ok", b"data")
    (local.local_path() / os.fsdecode(b"caf\xe9.png")).write_bytes(b"latin-1")
    listed = keys(local)
    assert listed == ["caf\udce9.png", "ok"]
    assert local.read(listed[0]) == b"latin-1"
    with pytest.raises(StorageError, match="valid Unicode"):
        local.write("\ud800", b"")


def test_a_listing_streams(local: LocalStorage) -> None:
    local.write("a/1", b"")
    local.write("b/2", b"")
    listing = local.list()
    assert next(listing).key == "a/1"
    local.delete_tree("b")
    assert list(listing) == []


def test_a_killed_writer_leaves_the_earlier_object_and_nothing_listed(local: LocalStorage) -> None:
    local.write("a/key", b"earlier")
    hidden = kill_a_writer_of(local.local_path("a/key"))
    assert local.read("a/key") == b"earlier"
    assert keys(local) == ["a/key"]
    assert hidden.read_bytes() == b"half of"


def test_what_killed_writers_left_does_not_stay_for_ever(local: LocalStorage, tmp_path: Path) -> None:
    local.write("a/key", b"earlier")
    old, live = kill_a_writer_of(local.local_path("a/key")), local.local_path("a") / ".darkroom-tmp-live"
    live.write_bytes(b"somebody is writing this now")
    age = live.stat().st_mtime_ns - ABANDONED_NS - 10**9
    os.utime(old, ns=(age, age))
    LocalStorage(local.local_path()).write("a/other", b"data")
    assert not old.exists()
    assert live.exists()


def kill_a_writer_of(path: Path) -> Path:
    """Kill a process in the middle of a write; return the hidden file it leaves."""
    program = (
        "import os, sys, pathlib\n"
        "from components.storage_local import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half of'); file.flush(); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, path], cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    (hidden,) = path.parent.glob(".darkroom-tmp-*")
    return hidden


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A limit of 1,000 bytes per file, which fails a write half-way as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_earlier_object(local: LocalStorage, tmp_path: Path) -> None:
    local.write("a/key", b"earlier")
    source = tmp_path / "source"
    source.touch()
    os.truncate(source, 1000)
    local.write("a/log", b"x" * 900 + b"\n")
    for attempt in (
        lambda: local.write("a/key", b"x" * 1001),
        lambda: local.create("a/new", b"x" * 1001),
        lambda: local.append("a/log", b"y" * 200 + b"\n"),
    ):
        with pytest.raises(StorageError, match="free some space") as caught:
            attempt()
        assert local.url in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    assert local.read("a/key") == b"earlier"
    assert local.read("a/log") == b"x" * 900 + b"\n"
    assert sorted(path.name for path in local.local_path("a").iterdir()) == ["key", "log"]


@pytest.mark.parametrize("folder", ["file/below", "file", "/proc/darkroom"])
def test_a_place_that_cannot_be_written_says_so(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = LocalStorage(tmp_path / folder)
    for attempt in (
        lambda: storage.write("key", b""),
        lambda: storage.create("key", b""),
        lambda: storage.append("key", b""),
        lambda: storage.upload("key", tmp_path / "file"),
    ):
        with pytest.raises(StorageError, match=r"(move one of them|check) .*folder") as caught:
            attempt()
        assert storage.url in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everywhere")
def test_a_forbidden_folder_says_so(local: LocalStorage) -> None:
    local.write("a/key", b"data")
    local.local_path("a").chmod(0)
    try:
        for attempt in (
            lambda: local.write("a/key", b""),
            lambda: local.read("a/key"),
            lambda: list(local.list()),
            lambda: local.exists("a/key"),
            lambda: local.delete("a/key"),
        ):
            with pytest.raises(StorageError, match="give this user the right") as caught:
                attempt()
            assert not isinstance(caught.value, NotFound)
    finally:
        local.local_path("a").chmod(0o700)


def test_a_file_where_a_folder_is_expected_is_not_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot list"):
        list(LocalStorage(tmp_path / "file").list())


def test_an_object_and_a_folder_cannot_share_a_name(local: LocalStorage) -> None:
    local.write("a/b", b"data")
    for attempt in (lambda: local.write("a", b""), lambda: local.create("a", b""), lambda: local.write("a/b/c", b"")):
        with pytest.raises(StorageError, match="same name"):
            attempt()
    assert keys(local) == ["a/b"]


def test_others_may_read_what_the_umask_lets_them(local: LocalStorage) -> None:
    umask = os.umask(0o027)
    try:
        local.write("key", b"data")
    finally:
        os.umask(umask)
    assert local.local_path("key").stat().st_mode & 0o777 == 0o640


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
        "memory://",
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
        "import sys; from components.storage import open_storage; open_storage('x'); assert 'boto3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
