"""What is particular to a local folder: links, killed writers, full disks, places that may not be written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.errors import NotFound, StorageError
from components.storage.base import HIDDEN, Storage
from components.storage.files import temporary_cache, whole_file
from components.storage.local import ABANDONED_NS, LocalStorage


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "workdir")


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.key for entry in storage.list(prefix)]


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


def test_a_link_is_deleted_and_what_it_leads_to_stays(local: LocalStorage, tmp_path: Path) -> None:
    local.write("a/b", b"data")
    for name, target in {"folder": "a", "file": "a/b", "dangling": "nowhere"}.items():
        (local.local_path() / name).symlink_to(target)
        local.delete(name)
    assert [path.name for path in local.local_path().iterdir()] == ["a"]
    assert local.read("a/b") == b"data"


def test_only_what_begins_like_a_hidden_file_inside_the_folder_is_unfinished(
    local: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{HIDDEN}1").write_bytes(b"somebody else's")
    local.write(f"a/copy-of-{HIDDEN}1", b"an ordinary object")
    (local.local_path() / "out").symlink_to(tmp_path / "elsewhere")
    assert list(local.list_unfinished()) == []


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
        "from components.storage.files import whole_file\n"
        "with whole_file(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half of'); file.flush(); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, path], cwd=Path(__file__).parents[3])
    assert ended.returncode == -signal.SIGKILL
    (hidden,) = path.parent.glob(".darkroom-tmp-*")
    return hidden


def test_bytes_are_on_the_disk_before_they_have_a_name(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(b"new")
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        fsync(file)
        named = (local.local_path() / "key").exists() and (local.local_path() / "key").read_bytes() == b"new"
        synced.append((os.fstat(file).st_size, named))

    monkeypatch.setattr(os, "fsync", watched)
    for change in (
        lambda: local.write("key", b"new"),
        lambda: local.create("key", b"new"),
        lambda: local.upload("key", tmp_path / "source"),
        lambda: LocalStorage(tmp_path).download("source", local.local_path("key")),
    ):
        synced.clear()
        change()
        assert synced == [(3, False)], "all three bytes, and not under their name yet"
        local.delete("key")


def test_no_hidden_file_stays_where_nobody_was_killed(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"data")
    local.write("a/written", b"data")
    local.append("a/appended", b"data")
    local.upload("a/uploaded", tmp_path / "source")
    assert local.create("a/created", b"data")
    assert not local.create("a/created", b"data")
    with pytest.raises(KeyboardInterrupt), whole_file(local.local_path("a/interrupted")):
        raise KeyboardInterrupt
    names = sorted(path.name for path in local.local_path("a").iterdir())
    assert names == ["appended", "created", "uploaded", "written"]


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit files to 1,000 bytes, which fails a write half-way as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_earlier_object(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 1001)
    local.write("a/key", b"earlier")
    local.write("a/log", b"x" * 900 + b"\n")
    for attempt in (
        lambda: local.write("a/key", b"x" * 1001),
        lambda: local.create("a/new", b"x" * 1001),
        lambda: local.upload("a/key", tmp_path / "source"),
        lambda: local.append("a/log", b"y" * 200 + b"\n"),
    ):
        with full_disk(), pytest.raises(StorageError, match="space") as caught:
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
        with pytest.raises(StorageError, match="folder") as caught:
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
            with pytest.raises(StorageError, match="right") as caught:
                attempt()
            assert not isinstance(caught.value, NotFound)
    finally:
        local.local_path("a").chmod(0o700)


def test_a_file_where_a_folder_is_expected_is_not_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="list"):
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


def test_what_killed_writers_left_is_listed_and_discarded(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a/b/c", b"data")
    for name in (f"{HIDDEN}1", f"a/b/{HIDDEN}2"):
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / f"a/b/{HIDDEN}2", (5, 5))
    listed = list(storage.list_unfinished())
    assert [one.key for one in listed] == [f"{HIDDEN}1", f"a/b/{HIDDEN}2"]
    assert (listed[1].size, listed[1].written) == (4, 5.0)
    assert [one.key for one in storage.child("a").list_unfinished()] == [f"b/{HIDDEN}2"]
    for one in (*listed, listed[0]):
        storage.discard(one)
    assert list(storage.list_unfinished()) == []
    assert storage.read("a/b/c") == b"data"


def test_the_bytes_are_on_the_disk_before_the_name_is(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still in Python's buffers is not in the file, and what has its name already is too late."""
    synced: list[tuple[bytes, bool]] = []
    fsync = os.fsync

    def watched(file: int) -> None:
        path = Path(f"/proc/self/fd/{file}")
        hidden = path.readlink().name.startswith(HIDDEN) and path.stat().st_nlink == 1
        synced.append((path.read_bytes(), hidden))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    (tmp_path / "source").write_bytes(b"uploaded")
    local.write("a", b"written")
    local.create("b", b"created")
    local.upload("c", tmp_path / "source")
    local.write_lines("d", [{"n": 1}])
    local.download("a", tmp_path / "copy")
    assert synced == [(data, True) for data in (b"written", b"created", b"uploaded", b'{"n": 1}\n', b"written")]


def test_what_was_appended_outlives_a_writer_that_is_killed_at_once(local: LocalStorage) -> None:
    program = (
        "import os, sys\n"
        "from components.storage.open import open_storage\n"
        "open_storage(sys.argv[1]).append_lines('log', [{'n': 1}, {'n': 2}]); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, local.url], cwd=Path(__file__).parents[3])
    assert ended.returncode == -signal.SIGKILL
    assert list(local.read_lines("log")) == [{"n": 1}, {"n": 2}]


def test_what_cannot_be_read_is_not_taken_for_absent(local: LocalStorage) -> None:
    local.write("a", b"data")
    with pytest.raises(StorageError, match="File name too long") as problem:
        local.read("n" * 300)
    assert not isinstance(problem.value, NotFound), "what is absent is made anew"


def test_a_listing_has_the_dates_of_the_files(local: LocalStorage, tmp_path: Path) -> None:
    local.write("a", b"data")
    written = next(tmp_path.rglob("a"))
    os.utime(written, (1.7e9, 1.7e9))
    (dated,) = local.list_dated()
    assert dated.written == 1.7e9


def test_a_temporary_cache_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in it is trusted by its name, and in the folder for temporary files anybody can be the first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = temporary_cache("cache")
    assert folder == temporary_cache("cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert temporary_cache("cache").stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"belongs to another user; set TMPDIR"):
        temporary_cache("cache")
    folder.unlink()
    folder.touch()
    with pytest.raises(StorageError, match=r"cache"):
        temporary_cache("cache")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to another user")
def test_a_temporary_cache_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.chown(temporary_cache("cache"), 65534, 65534)
    with pytest.raises(StorageError, match="belongs to another user"):
        temporary_cache("cache")
