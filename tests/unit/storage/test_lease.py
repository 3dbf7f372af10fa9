"""A lease on every storage: one holder at a time; a dead one's is taken over; one that lost it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import DataError, LeaseHeld, LeaseLost, StorageError
from components.storage import lease as leases
from components.storage.base import Storage
from components.storage.lease import Claim, Holder, Lease, acquire, read_holder
from components.storage.local import LocalStorage
from components.storage.open import open_storage

ROOT = Path(__file__).parents[3]
# Takes the lease once its input says so, and holds it until its input ends.
TAKER = """
import json, sys
from components.errors import LeaseHeld
from components.storage.lease import acquire
from components.storage.open import open_storage
run = open_storage(sys.argv[1])
list(run.list())
print(flush=True)
sys.stdin.readline()
try:
    lease = acquire(run, "training", "the training of r")
    print(json.dumps(["held", lease.claim.generation]), flush=True)
except LeaseHeld as error:
    print(json.dumps(["rejected", str(error)]), flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["folder", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run")) if request.param == "folder" else request.getfixturevalue("s3")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


def no_wait(_seconds: float) -> None:
    pass


def take(run: Storage) -> Lease:
    return acquire(run, "training", "the training of r", no_wait)


class Taker:
    """A process that takes the lease when it is told to."""

    def __init__(self, run: Storage) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKER, run.url],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        return json.loads(self.line())

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        with self.process:
            pass


def test_of_launchers_that_race_one_holds_the_lease(run: Storage) -> None:
    takers = [Taker(run) for _ in range(4)]
    for taker in takers:
        taker.go()
    results = [taker.result() for taker in takers]
    holders = [taker for taker, (word, _) in zip(takers, results, strict=True) if word == "held"]
    assert len(holders) == 1, results
    for word, text in results:
        if word == "rejected":
            assert f"the training of r is being run by process {holders[0].process.pid} on " in text
    # The holder is killed: of the next ones that race, one takes it over at once.
    holders[0].kill()
    again = [Taker(run) for _ in range(3)]
    for taker in again:
        taker.go()
    results = [taker.result() for taker in again]
    assert sorted(word for word, _ in results) == ["held", "rejected", "rejected"], results
    for taker in [*takers, *again]:
        taker.close()


def test_a_holder_is_told_to_who_comes_second(run: Storage) -> None:
    lease = take(run)
    with pytest.raises(LeaseHeld, match=rf"process {os.getpid()} on \S+ since 20\d\d-.* UTC, last sign of life \d+ s"):
        take(run)
    holder = read_holder(run, "training")
    assert holder is not None
    assert holder.pid == os.getpid()
    assert read_holder(run, "another") is None
    take(run.child("elsewhere"))
    lease.release()
    assert read_holder(run, "training") is None
    assert take(run).claim.generation == 2


def test_a_store_gets_time_to_show_every_claim_and_a_folder_needs_none(run: Storage) -> None:
    waits: list[float] = []
    acquire(run, "training", "the training of r", waits.append)
    assert waits == ([leases.SETTLE_SECONDS] if run.local_path() is None else [])


def test_only_the_newest_generation_stays(folder: Storage) -> None:
    for _ in range(3):
        take(folder).release()
    generations = {Path(entry.key).name.partition(".")[0] for entry in folder.list()}
    assert {int("".join(filter(str.isdigit, name))) for name in generations} == {3}


def as_of_another_machine(run: Storage, monkeypatch: pytest.MonkeyPatch) -> Lease:
    with monkeypatch.context() as there:
        there.setattr(leases, "_machine", lambda: "another machine")
        return take(run)


def test_the_lease_of_another_machine_expires(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    as_of_another_machine(folder, monkeypatch)
    with pytest.raises(LeaseHeld, match=r"if that machine is gone, start again in \d+ s"):
        take(folder)
    age(folder, leases.EXPIRY_SECONDS - 5)
    with pytest.raises(LeaseHeld, match=r"last sign of life 5\d s ago.* start again in 5 s"):
        take(folder)
    age(folder, 5)
    assert take(folder).claim.generation == 2


def age(folder: Storage, seconds: float) -> None:
    """Make all that is there so much older."""
    for entry in folder.list("leases"):
        path = folder.local_path(entry.key)
        assert path is not None
        os.utime(path, (path.stat().st_atime - seconds, path.stat().st_mtime - seconds))


def test_beats_keep_it(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = as_of_another_machine(folder, monkeypatch)
    claim = folder.local_path("leases/training/000000001.json")
    assert claim is not None
    beaten = threading.Event()
    write = LocalStorage.write

    def noted(self: LocalStorage, key: str, data: bytes) -> None:
        write(self, key, data)
        if key.endswith(".beat"):
            beaten.set()

    monkeypatch.setattr(LocalStorage, "write", noted)
    with lease.kept(pytest.fail, every=0.01):
        assert beaten.wait(10)
        # The claim itself must stay as it is, so only the beat is recent.
        with pytest.raises(LeaseHeld):
            take(folder)
    assert take(folder).claim.generation == 2


def test_after_a_restart_of_the_machine_its_holders_are_those_of_another(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_of_another_machine(folder, monkeypatch)
    holder = Holder(**folder.read_json("leases/training/000000001.json"))
    assert not holder.is_here
    assert not holder.is_alive_here


def test_the_lease_of_a_process_whose_id_another_one_has_now_is_free(folder: Storage) -> None:
    take(folder)
    key = "leases/training/000000001.json"
    folder.write_json(key, {**folder.read_json(key), "process": "0"})
    assert take(folder).claim.generation == 2


def test_a_stopped_process_of_this_machine_keeps_its_lease_however_long(folder: Storage) -> None:
    taker = Taker(folder)
    taker.go()
    assert taker.result() == ["held", 1]
    taker.process.send_signal(signal.SIGSTOP)
    age(folder, 1e6)
    with pytest.raises(LeaseHeld, match=f"kill {taker.process.pid}"):
        take(folder)
    taker.kill()
    assert take(folder).claim.generation == 2


CHANGES: dict[str, Callable[[Storage, Path], object]] = {
    "write": lambda storage, _file: storage.write("key", b""),
    "create": lambda storage, _file: storage.create("new", b""),
    "append": lambda storage, _file: storage.append_lines("key", [{}]),
    "upload": lambda storage, file: storage.upload("key", file),
    "delete": lambda storage, _file: storage.delete("key"),
    "delete a folder": lambda storage, _file: storage.delete_tree("folder"),
    "write below": lambda storage, _file: storage.child("folder").write_json("key", {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_holder_that_lost_its_lease_changes_nothing(
    folder: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").write_bytes(b"new")
    lease = take(folder)
    guarded = lease.guard(folder)
    for key in ("key", "folder/key"):
        guarded.write(key, b"old")
    folder.write("leases/training/000000002.json", b"{}")
    before = {entry.key: folder.read(entry.key) for entry in folder.list()}
    monkeypatch.setattr(leases, "CONFIRM_SECONDS", 0.0)
    with pytest.raises(LeaseLost, match=r"generation 2 of leases/training, this one is 1"):
        CHANGES[name](guarded, tmp_path / "file")
    assert {entry.key: folder.read(entry.key) for entry in folder.list()} == before
    assert guarded.read("key") == b"old"
    assert [entry.key for entry in guarded.list("folder")] == ["folder/key"]
    assert guarded.local_path("key") == folder.local_path("key")


def test_a_holder_looks_again_only_after_a_while(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(leases, "_now", lambda: now[0])
    guarded = take(folder).guard(folder)
    folder.delete_tree("leases")
    now[0] += leases.CONFIRM_SECONDS
    guarded.write("key", b"")
    now[0] += 0.1
    with pytest.raises(LeaseLost, match="generation 0"):
        guarded.write("key", b"")


def test_a_keeper_hears_that_it_lost_its_lease_and_leaves_it_to_the_other(folder: Storage) -> None:
    lost = threading.Event()
    lease = take(folder)
    with lease.kept(lost.set, every=0.01):
        folder.write("leases/training/000000002.json", b"{}")
        assert lost.wait(10)
    assert sorted(entry.key for entry in folder.list("leases/training") if "2" in entry.key) == [
        "leases/training/000000002.json"
    ]


def test_a_rank_has_the_lease_of_its_launcher(run: Storage) -> None:
    lease = take(run)
    of_rank = Lease(run, "training", Claim.parse(str(lease.claim)))
    of_rank.confirm()
    lease.release()
    of_rank.confirm()
    take(run)
    with pytest.raises(LeaseLost):
        of_rank.confirm()


def test_who_created_at_the_same_moment_and_was_not_last_is_rejected(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swift has let several create the same object at the same moment."""

    def overwritten(key: str, data: bytes) -> bool:
        folder.write_json(key, {**json.loads(data), "token": "of the other", "pid": 1})
        return True

    monkeypatch.setattr(folder, "create", overwritten)
    with pytest.raises(LeaseHeld, match="process 1 on"):
        take(folder)


def test_a_holder_gives_way_to_its_own_kind_alone(folder: Storage) -> None:
    first = acquire(folder, "training", "the training of r", no_wait, kind="trainjob")
    for kind in ("", "other"):
        with pytest.raises(LeaseHeld):
            acquire(folder, "training", "the training of r", no_wait, kind=kind)
    second = acquire(folder, "training", "the training of r", no_wait, kind="trainjob")
    with pytest.raises(LeaseLost):
        first.confirm()
    second.release()
    take(folder)
    with pytest.raises(LeaseHeld):
        acquire(folder, "training", "the training of r", no_wait, kind="trainjob")


def test_a_damaged_claim_is_named(folder: Storage) -> None:
    folder.write("leases/training/000000007.json", b'{"pid": 1}')
    with pytest.raises(DataError, match=r"leases/training/000000007\.json in .* is damaged"):
        take(folder)


def test_a_store_that_is_away_does_not_end_the_keeper(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = threading.Semaphore(0)

    def away(_prefix: str = "") -> Any:
        tries.release()
        raise StorageError("away")

    lease = take(folder)
    with monkeypatch.context() as patched:
        patched.setattr(folder, "list", away)
        with lease.kept(pytest.fail, every=0.01):
            for _ in range(3):
                assert tries.acquire(timeout=10)


def test_a_folder_without_links_has_leases_too(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    take(folder)
    with pytest.raises(LeaseHeld):
        take(folder)
    assert folder.create("new", b"data")
    assert not folder.create("new", b"other")
    assert folder.read("new") == b"data"
