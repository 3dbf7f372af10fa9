"""The cache of remote shards: fetched once, checked, bounded, and shared by processes that do not wait for the dead."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.digests import sha256
from components.errors import ConfigError, DataError, NotFound, StorageError
from components.storage.base import HIDDEN
from components.train.data.shard_cache import ShardCache
from tests.stores.memory import MemoryStorage

SIZE = 1000


class Remote(MemoryStorage):
    """A remote storage that counts downloads, and damages some on demand."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.downloads: list[str] = []
        self.spoil: list[bytes] = []

    def download(self, key: str, path: Path) -> None:
        self.downloads.append(key)
        if self.spoil:
            path.write_bytes(self.spoil.pop(0))
        else:
            super().download(key, path)

    def add(self, number: int) -> tuple[str, int, str]:
        data = bytes([number]) * SIZE
        self.write(f"{number}.tar", data)
        return f"{number}.tar", SIZE, sha256(data)


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    storage = Remote(request.node.name)
    yield storage
    for entry in storage.list():
        storage.delete(entry.key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_shard_is_fetched_once_for_all_caches_of_a_machine(remote: Remote, folder: Path) -> None:
    shard = remote.add(1)
    for _ in range(3):
        tar = ShardCache(folder, 10 * SIZE).open(remote, *shard, verify=True)
        assert bytes(tar.part(0, SIZE)) == bytes([1]) * SIZE
        assert bytes(tar.part(SIZE - 2, 10)) == b"\1\1"
    assert remote.downloads == ["1.tar"]
    assert names(folder) == {f"{shard[2]}.tar"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file to another user")
def test_a_copy_that_another_user_planted_is_fetched_anew(remote: Remote, folder: Path) -> None:
    shard = remote.add(1)
    folder.mkdir()
    planted = folder / f"{shard[2]}.tar"
    planted.write_bytes(b"x" * SIZE)
    os.chown(planted, 65534, 65534)
    tar = ShardCache(folder, 10 * SIZE).open(remote, *shard, verify=True)
    assert bytes(tar.part(0, SIZE)) == bytes([1]) * SIZE
    assert planted.stat().st_uid == os.getuid()


def test_whoever_downloads_has_locked_the_others_out(remote: Remote, folder: Path) -> None:
    shard, locked = remote.add(1), []
    download = remote.download

    def watched(key: str, path: Path) -> None:
        (lock,) = folder.glob("*.lock")
        with lock.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.append(lock.stem)
        download(key, path)

    remote.download = watched  # type: ignore[method-assign]
    ShardCache(folder, 3 * SIZE).open(remote, *shard, verify=True)
    assert locked == [shard[2]]


def test_the_least_recently_opened_go_when_the_bound_is_reached(remote: Remote, folder: Path) -> None:
    cache = ShardCache(folder, 3 * SIZE)
    shards = [remote.add(number) for number in range(4)]
    for age, shard in enumerate(shards[:3]):
        cache.open(remote, *shard, verify=True)
        os.utime(folder / f"{shard[2]}.tar", (1000 + age, 1000 + age))
    cache.open(remote, *shards[0], verify=True)  # now the most recent
    cache.open(remote, *shards[3], verify=True)
    assert names(folder) == {f"{shards[number][2]}.tar" for number in (0, 2, 3)}
    assert remote.downloads == ["0.tar", "1.tar", "2.tar", "3.tar"]


def test_an_open_shard_stays_readable_when_its_copy_goes(remote: Remote, folder: Path) -> None:
    cache = ShardCache(folder, SIZE)
    first, second = remote.add(1), remote.add(2)
    tar = cache.open(remote, *first, verify=True)
    cache.open(remote, *second, verify=True)
    assert names(folder) == {f"{second[2]}.tar"}
    assert bytes(tar.part(0, SIZE)) == bytes([1]) * SIZE


@pytest.mark.parametrize("spoilt", [b"", b"x" * SIZE, b"\1" * (SIZE - 1)], ids=["empty", "other", "short"])
def test_a_fault_on_the_way_is_mended_and_one_at_the_source_is_told(
    remote: Remote, folder: Path, spoilt: bytes
) -> None:
    cache = ShardCache(folder, 10 * SIZE)
    shard = remote.add(1)
    remote.spoil = [spoilt]
    assert bytes(cache.open(remote, *shard, verify=True).part(0, 1)) == b"\1"
    other = remote.add(2)
    remote.spoil = [spoilt, spoilt]
    with pytest.raises(DataError, match=r"2\.tar\b"):
        cache.open(remote, *other, verify=True)
    assert names(folder) == {f"{shard[2]}.tar"}, "nothing of it stays"


def test_what_was_not_checked_is_not_taken_for_checked(remote: Remote, folder: Path) -> None:
    cache = ShardCache(folder, 10 * SIZE)
    shard = remote.add(1)
    remote.spoil = [b"x" * SIZE]
    assert bytes(cache.open(remote, *shard, verify=False).part(0, 1)) == b"x"
    assert bytes(cache.open(remote, *shard, verify=True).part(0, 1)) == b"\1"


def test_a_copy_that_was_cut_short_is_fetched_again(remote: Remote, folder: Path) -> None:
    cache = ShardCache(folder, 10 * SIZE)
    shard = remote.add(1)
    cache.open(remote, *shard, verify=True)
    (folder / f"{shard[2]}.tar").write_bytes(b"\1")
    assert len(cache.open(remote, *shard, verify=True).part(0, 2 * SIZE)) == SIZE
    assert len(remote.downloads) == 2


def test_what_killed_processes_left_is_cleared_away(remote: Remote, folder: Path) -> None:
    folder.mkdir()
    (folder / f"{HIDDEN}old").write_bytes(b"half")
    (folder / f"{HIDDEN}new").write_bytes(b"half")
    os.utime(folder / f"{HIDDEN}old", (1000, 1000))
    shard = remote.add(1)
    (folder / f"{shard[2]}.lock").touch()  # its process is gone, and the lock with it
    ShardCache(folder, 10 * SIZE).open(remote, *shard, verify=True)
    assert names(folder) == {f"{shard[2]}.tar", f"{HIDDEN}new"}


def test_what_is_missing_or_too_large_is_told(remote: Remote, folder: Path, tmp_path: Path) -> None:
    shard = remote.add(1)
    with pytest.raises(ConfigError, match=r"train\.data\.cache_gib"):
        ShardCache(folder, SIZE - 1).open(remote, *shard, verify=True)
    remote.delete("1.tar")
    with pytest.raises(NotFound):
        ShardCache(folder, SIZE).open(remote, *shard, verify=True)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot cache a shard"):
        ShardCache(tmp_path / "file", SIZE).open(remote, *shard, verify=True)


PROCESS = """
import os, random, sys
from pathlib import Path
from components.train.data.shard_cache import ShardCache
from components.digests import sha256
from components.storage.local import LocalStorage

class Remote(LocalStorage):
    def local_path(self, key=""):
        return None
    def download(self, key, path):
        with open(sys.argv[3], "ab", buffering=0) as log:
            log.write(key.encode() + b"\\n")
        with open(LocalStorage.local_path(self, key), "rb") as source:
            path.write_bytes(source.read())

remote, cache = Remote(Path(sys.argv[1])), ShardCache(Path(sys.argv[2]), int(sys.argv[4]))
order = random.Random(int(sys.argv[5]))
for number in [n for _ in range(10) for n in order.sample(range(12), 12)]:
    data = bytes([number]) * 1000
    tar = cache.open(remote, f"{number}.tar", 1000, sha256(data), verify=True)
    assert bytes(tar.part(0, 1000)) == data, number
"""


@pytest.mark.parametrize("room", [12, 3])
def test_processes_share_the_cache(tmp_path: Path, room: int) -> None:
    """With room for all each shard is fetched once; with little they take turns, and all read the right bytes."""
    source, folder, log = tmp_path / "source", tmp_path / "cache", tmp_path / "log"
    source.mkdir()
    for number in range(12):
        (source / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    arguments = [str(source), str(folder), str(log), str(room * SIZE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), *arguments, str(seed)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    if room == 12:
        assert sorted(log.read_text().split()) == sorted(f"{number}.tar" for number in range(12))
    assert sum(path.stat().st_size for path in folder.glob("*.tar")) <= (room + 3) * SIZE
