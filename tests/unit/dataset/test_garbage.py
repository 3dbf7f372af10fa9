"""Garbage: what no run and no model refers to goes, in an order that no reader stumbles over; all else stays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from components.dataset.encoding_record import write_encoding
from components.dataset.garbage import Garbage, find_garbage, garbage_kind, remove, uses_encoders, versions_to_keep
from components.dataset.references import InUse, Reference, in_use, read_references
from components.dataset.versions import (
    Shard,
    make_dataset,
    newest_keys,
    read_dataset,
    read_version,
    version_key,
    write_dataset,
    write_group,
)
from components.digests import digest, sha256
from components.errors import DataError
from components.model.manifest import read_digests
from components.storage.base import Dated, Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from tests.stores.mortal import killed_everywhere

OLD, SINCE, NOW = 1_000.0, 5_000.0, 9_000.0
NOBODY = InUse(frozenset(), frozenset(), frozenset(), frozenset(), everything=False)


def shard(number: int) -> Shard:
    return Shard(f"shards/16x16/{number:016x}", (16, 16), 3, 5, sha256(b"%d" % number))


class Workdir:
    """A workdir in a folder, with datasets, bases, runs and models as the steps leave them, all of them old."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage: Storage = open_storage(str(root))

    def commit(self, key: str, numbers: Iterable[int]) -> str:
        dataset = self.storage.child(f"datasets/{key}")
        shards = [shard(number) for number in numbers]
        for one in shards:
            dataset.write(f"{one.name}.tar", b"12345")
            dataset.write(f"{one.name}.idx", b"{}")
        committed = make_dataset(key, {}, shards, rejected=0)
        write_dataset(dataset, committed)
        write_group(dataset, "000", [one.name for one in shards])
        return committed.digest

    def base(self, key: str, finished: bool = True, vae: bytes = b"") -> None:
        self.storage.write(f"models/base/{key}/vae/weights", vae)
        if finished:
            self.storage.write_json(f"models/base/{key}/COMMIT", {"sha256": {"vae/weights": sha256(vae)}})

    def run(self, name: str, key: str, version: str, base: str = "none") -> None:
        run = self.storage.child(f"runs/{name}")
        made = {"encoding_key": key, "base_model": f"workdir:models/base/{base}"}
        run.write_json("steps/autoencoder.json", {"result": made})
        run.write_json("steps/index.json", {"result": {"encoding_key": key, "dataset_digest": version}})

    def age(self) -> None:
        for path in self.root.rglob("*"):
            os.utime(path, (OLD, OLD))

    def touch(self, key: str) -> None:
        os.utime(self.root / key, (NOW, NOW))

    def garbage(self, since: float = SINCE) -> list[Garbage]:
        return list(find_garbage(self.storage, lambda: in_use(read_references(self.storage), since), since))

    def collect(self) -> None:
        for garbage in self.garbage():
            remove(self.storage, garbage)

    def keys(self, prefix: str = "") -> set[str]:
        return {entry.key for entry in self.storage.list(prefix)}


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir(tmp_path / "work")


def kinds(garbage: Iterable[Garbage]) -> list[tuple[str, str]]:
    return [(one.kind, one.path) for one in garbage]


def test_what_a_run_uses_stays(workdir: Workdir) -> None:
    workdir.base("b")
    workdir.run("one", "k", workdir.commit("k", [1, 2]), "b")
    workdir.age()
    assert workdir.garbage() == []


def test_captions_go_once_neither_a_run_nor_a_version_in_use_needs_them(workdir: Workdir) -> None:
    for name in ("of-a-run", "of-a-version", "unused", "recent"):
        workdir.storage.write(f"captions/source/{name}/g0.jsonl", b"{}")
    dataset = workdir.storage.child("datasets/k")
    committed = make_dataset("k", {}, [], rejected=0, caption_set="source/of-a-version")
    write_dataset(dataset, committed)
    workdir.run("one", "k", committed.digest)
    workdir.storage.write_json("runs/two/steps/ingest.json", {"result": {"caption_set": "source/of-a-run"}})
    workdir.age()
    workdir.touch("captions/source/recent/g0.jsonl")
    assert kinds(workdir.garbage()) == [("captions", "captions/source/unused")]

    workdir.touch("runs/two/steps/ingest.json")
    assert workdir.garbage() == [], "a run at work has not said yet which dataset it uses"
    workdir.storage.delete_tree("runs")
    workdir.age()
    assert ("captions", "captions/source/of-a-version") in kinds(workdir.garbage())
    workdir.collect()
    assert not list(workdir.storage.list("captions"))


def test_a_dataset_and_a_base_that_nobody_uses_go(workdir: Workdir) -> None:
    workdir.commit("k", [1])
    workdir.base("b")
    workdir.base("half", finished=False)
    workdir.age()
    garbage = workdir.garbage()
    assert kinds(garbage) == [
        ("dataset", "datasets/k"),
        ("base model", "models/base/b"),
        ("unfinished model", "models/base/half"),
    ]
    assert garbage[0].bytes == sum(entry.size for entry in workdir.storage.list("datasets"))
    workdir.collect()
    assert workdir.keys() == set()


def test_no_caption_set_has_a_dataset_once_its_shards_begin_to_go(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever order a store deletes a folder in."""
    dataset = workdir.storage.child("datasets/k")
    for name in ("source/one", "source/two"):
        write_dataset(dataset, make_dataset("k", {}, [shard(1)], rejected=0, caption_set=name))
    workdir.age()
    (garbage,) = workdir.garbage()

    def killed(_path: str) -> None:
        assert newest_keys(dataset) == {}
        raise InterruptedError

    monkeypatch.setattr(workdir.storage, "delete_tree", killed)
    with pytest.raises(InterruptedError):
        remove(workdir.storage, garbage)


def test_a_group_that_cannot_be_read_stops_the_collection(workdir: Workdir) -> None:
    workdir.run("one", "k", workdir.commit("k", [1]))
    workdir.storage.write_json("datasets/k/groups/000.json", {"format": 2})
    workdir.age()
    with pytest.raises(DataError, match=r"groups/000\.json in .*datasets/k is damaged; delete it and run the latents"):
        workdir.garbage()


def test_an_earlier_version_goes_with_the_shards_that_only_it_has(workdir: Workdir) -> None:
    first = workdir.commit("k", [1, 2])
    second = workdir.commit("k", [2, 3])
    third = workdir.commit("k", [3, 4])
    workdir.run("one", "k", second)
    workdir.age()
    garbage = workdir.garbage()
    assert [one.key.removeprefix("datasets/k/") for one in garbage] == [
        version_key(first),
        f"{shard(1).name}.idx",
        f"{shard(1).name}.tar",
    ], "the version before its shard, the index before its tar"
    workdir.collect()
    left = {f"{shard(n).name}.{suffix}" for n in (2, 3, 4) for suffix in ("idx", "tar")}
    left |= {version_key(second), version_key(third), "dataset.json", "groups/000.json"}
    assert workdir.keys("datasets/k") == {f"datasets/k/{name}" for name in left}


def test_a_shard_that_a_group_waits_to_have_indexed_stays(workdir: Workdir) -> None:
    workdir.run("one", "k", workdir.commit("k", [1]))
    dataset = workdir.storage.child("datasets/k")
    for number in (5, 6):
        dataset.write(f"{shard(number).name}.tar", b"12345")
    write_group(dataset, "007", [shard(5).name])
    workdir.age()
    assert [one.key for one in workdir.garbage()] == [f"datasets/k/{shard(6).name}.tar"]


def test_what_a_published_model_was_trained_on_stays(workdir: Workdir) -> None:
    first, second = workdir.commit("k", [1]), workdir.commit("k", [2])
    workdir.storage.write_json("models/digits/champion.json", {"dataset_digest": first})
    workdir.storage.write("models/digits/v1/COMMIT", b"")
    workdir.age()
    assert workdir.garbage() == []
    workdir.storage.write_json("models/digits/champion.json", {"dataset_digest": second})
    workdir.age()
    assert ("version", "datasets/k") in kinds(workdir.garbage())


def test_the_base_that_a_kept_dataset_was_encoded_with_stays(workdir: Workdir) -> None:
    workdir.base("encoder", vae=b"one")
    workdir.base("other", vae=b"two")
    workdir.run("one", "k", workdir.commit("k", [1]))
    vae = digest({"vae/weights": sha256(b"one")})
    write_encoding(workdir.storage.child("datasets/k"), {"models": {"vae": vae}})
    workdir.age()
    assert kinds(workdir.garbage()) == [("base model", "models/base/other")]


@pytest.mark.parametrize(
    "young",
    [
        "models/base/b/COMMIT",
        "models/base/b/vae/weights",
        "models/base/half/vae/weights",
        "models/digits/v1/unet/weights",
        "datasets/k/groups/000.json",
        "datasets/u/versions",
        f"datasets/u/{shard(1).name}.tar",
    ],
)
@pytest.mark.parametrize("age", [0, NOW - SINCE])
def test_nothing_that_is_younger_than_the_time_of_grace_goes(workdir: Workdir, young: str, age: float) -> None:
    workdir.base("b")
    workdir.base("half", finished=False)
    workdir.storage.write("models/digits/v1/unet/weights", b"")
    workdir.commit("k", [1])
    first = workdir.commit("u", [1])
    workdir.run("one", "u", workdir.commit("u", [2]))
    workdir.age()
    young = young.replace("versions", version_key(first))
    before = {one.key if not one.folder else one.path for one in workdir.garbage()}
    assert any(young.startswith(path) for path in before), "it is garbage"
    os.utime(workdir.root / young, (NOW - age, NOW - age))
    after = {one.key if not one.folder else one.path for one in workdir.garbage()}
    assert after == {path for path in before if not young.startswith(path)}


@pytest.mark.parametrize("young", ["dataset.json", "groups/000.json", f"{shard(1).name}.tar"])
def test_what_is_young_stays(workdir: Workdir, young: str) -> None:
    workdir.commit("k", [1])
    workdir.age()
    workdir.touch(f"datasets/k/{young}")
    assert workdir.garbage() == []


def test_a_run_at_work_keeps_its_whole_dataset(workdir: Workdir) -> None:
    workdir.commit("k", [1])
    workdir.run("one", "k", workdir.commit("k", [2]))
    workdir.age()
    assert workdir.garbage()
    workdir.storage.write("runs/one/ledger.jsonl", b"")
    workdir.touch("runs/one/ledger.jsonl")
    assert workdir.garbage() == []


def test_a_run_that_has_not_recorded_what_it_uses_keeps_everything(workdir: Workdir) -> None:
    workdir.commit("k", [1])
    workdir.base("b")
    workdir.storage.write("runs/new/config.json", b"{}")
    workdir.age()
    assert len(workdir.garbage()) == 2
    workdir.touch("runs/new/config.json")
    assert workdir.garbage() == []
    workdir.storage.write_json("runs/new/steps/autoencoder.json", {"result": None})  # still at it
    workdir.touch("runs/new/steps/autoencoder.json")
    assert workdir.garbage() == []


def test_a_run_that_begins_while_garbage_is_collected_is_noticed(workdir: Workdir) -> None:
    for key in ("a", "k"):
        version = workdir.commit(key, [1])
    workdir.age()
    garbage: Iterator[Garbage] = find_garbage(
        workdir.storage, lambda: in_use(read_references(workdir.storage), SINCE), SINCE
    )
    assert next(garbage).path == "datasets/a"
    workdir.run("late", "k", version)
    assert list(garbage) == []


def test_what_killed_writers_left_goes(workdir: Workdir) -> None:
    workdir.run("one", "k", workdir.commit("k", [1]))
    for name in ("datasets/k/.darkroom-tmp-1", "datasets/k/.darkroom-tmp-2"):
        (workdir.root / name).write_bytes(b"half")
    workdir.storage.write("models/digits/v1/unet/weights", b"")
    workdir.storage.write("models/digits/v2/COMMIT", b"")
    workdir.age()
    workdir.touch("datasets/k/.darkroom-tmp-2")
    assert kinds(workdir.garbage()) == [
        ("unfinished model", "models/digits/v1"),
        ("unfinished write", "datasets/k/.darkroom-tmp-1"),
    ]
    workdir.collect()
    assert workdir.garbage() == []
    assert (workdir.root / "datasets/k/.darkroom-tmp-2").exists()


def assert_readers_find_all_whole(storage: Storage) -> None:
    """Check that all is there of which something says so: a marker, a dataset, a version of it, a shard's index."""
    keys = {entry.key for entry in storage.list()}
    for commit in (key for key in keys if key.endswith("/COMMIT")):
        path = commit.removesuffix("COMMIT")
        assert {path + name for name in read_digests(storage.child(path))} <= keys
    for path in (key.removesuffix("/dataset.json") for key in keys if key.endswith("/dataset.json")):
        dataset = storage.child(path)
        newest, there = read_dataset(dataset), {entry.key for entry in dataset.list()}
        assert newest is not None
        versions = [key.split("/")[1].removesuffix(".json") for key in there if key.startswith("versions/")]
        for one in [newest, *(read_version(dataset, version) for version in versions)]:
            assert {f"{made.name}.tar" for made in one.shards} <= there
        assert {key.replace(".idx", ".tar") for key in there if key.endswith(".idx")} <= there


def test_a_collection_killed_anywhere_leaves_only_what_is_whole_and_is_finished_by_the_next(tmp_path: Path) -> None:
    def fill(storage: Storage) -> None:
        workdir = Workdir(Path(storage.url))
        workdir.base("b")
        workdir.commit("k", [1])
        workdir.commit("u", [1, 2])
        workdir.run("one", "u", workdir.commit("u", [2]))
        workdir.age()

    def collect(storage: Storage) -> None:
        for garbage in find_garbage(storage, lambda: in_use(read_references(storage), SINCE), SINCE):
            remove(storage, garbage)

    whole = open_storage(str(tmp_path / "whole"))
    fill(whole)
    collect(whole)
    left, killed = {entry.key for entry in whole.list()}, 0
    assert {key.split("/")[1] for key in left} == {"u", "one"}
    assert not any(shard(1).name in key for key in left)
    for storage in killed_everywhere(fill, collect, str(tmp_path / "killed")):
        assert_readers_find_all_whole(storage)
        collect(storage)
        assert {entry.key for entry in storage.list()} == left
        killed += 1
    assert killed == 10, "a version and a shard of two objects, a dataset of five, a base model of two"


@pytest.mark.parametrize("record", [b"[1]", b"[]", b'"text"', b"{", b'{"result": 7}', b'{"result": 0}'])
def test_a_record_that_is_not_understood_stops_the_collection(workdir: Workdir, record: bytes) -> None:
    workdir.commit("k", [1])
    workdir.storage.write("runs/one/steps/index.json", record)
    workdir.age()
    with pytest.raises(DataError, match=r"runs/one/steps/index\.json"):
        workdir.garbage()


def test_training_and_evaluation_say_what_they_rest_on(workdir: Workdir) -> None:
    workdir.storage.write_json("runs/one/training.json", {"dataset": "d1"})
    evaluation = {"dataset_digest": "d2", "base_model": "owner/name", "metrics": {}}
    workdir.storage.write_json("runs/one/evaluation/evaluation.json", evaluation)
    (reference,) = read_references(workdir.storage)
    assert (reference.by, set(reference.versions), set(reference.bases)) == ("run one", {"d1", "d2"}, {"owner/name"})
    assert not reference.complete


@pytest.mark.parametrize("step", ["autoencoder", "index"])
def test_each_step_that_names_the_encoding_is_enough(workdir: Workdir, step: str) -> None:
    workdir.storage.write_json(f"runs/one/steps/{step}.json", {"result": {"encoding_key": "k"}})
    (reference,) = read_references(workdir.storage)
    assert reference.encodings == {"k"}
    assert reference.complete


def test_a_record_that_goes_while_it_is_read_refers_to_nothing(workdir: Workdir) -> None:
    class Forgetful(LocalStorage):
        """Deletes a run's records right after it has listed them, as `darkroom run` does when it begins anew."""

        def list_dated(self, prefix: str = "") -> Iterator[Dated]:
            garbage = list(super().list_dated(prefix))
            self.delete_tree("runs/one/steps")
            return iter(garbage)

    workdir.run("one", "k", "v")
    (reference,) = read_references(Forgetful(workdir.root))
    assert (reference.by, reference.encodings, reference.complete) == ("run one", frozenset(), False)


def test_whoever_wrote_lately_is_at_work() -> None:
    old = Reference("run old", frozenset("a"), frozenset("1"), frozenset("x"), OLD, complete=False)
    new = Reference("run new", frozenset("b"), frozenset("2"), frozenset("y"), NOW)
    assert in_use([old, new], SINCE) == InUse(
        frozenset("ab"), busy=frozenset("b"), versions=frozenset("12"), bases=frozenset("xy"), everything=False
    )
    assert in_use([old, new], OLD).everything
    assert in_use([], SINCE) == NOBODY


def test_versions_that_stay() -> None:
    committed = {"1": False, "2": False, "3": True}

    def kept_versions(
        kept: InUse, versions: dict[str, bool] = committed, written: float = OLD
    ) -> frozenset[str] | None:
        return versions_to_keep("k", versions, written, kept, SINCE)

    used = InUse(frozenset("k"), frozenset(), frozenset({"1"}), frozenset(), everything=False)
    assert kept_versions(used) == frozenset({"1", "3"})
    assert kept_versions(used, {}) is None
    assert kept_versions(NOBODY) == frozenset()
    assert kept_versions(NOBODY, written=NOW) is None
    assert kept_versions(InUse(frozenset(), frozenset(), frozenset({"2"}), frozenset(), everything=False)) == frozenset(
        {"2", "3"}
    )
    assert kept_versions(InUse(frozenset(), frozenset(), frozenset(), frozenset(), everything=True)) is None


def test_leftovers_are_shards_and_versions_only() -> None:
    stays = ("dataset.json", "captions/000.jsonl", "empty.npy", "shards/notes.txt", "versions/a.json", "shards/s.tar")
    assert [garbage_kind(key, {"versions/a.json"}, {"shards/s"}) for key in stays] == [""] * len(stays)
    assert garbage_kind("versions/b.json", {"versions/a.json"}, set()) == "version"
    assert garbage_kind("shards/t.idx", set(), {"shards/s"}) == "shard"


def test_a_base_is_matched_by_the_encoders_that_it_holds() -> None:
    files = {"vae/a": "1", "tokenizer/b": "2", "unet/c": "3"}
    parts = {"vae": digest({"vae/a": "1"}), "tokenizer": digest({"tokenizer/b": "2"})}
    assert uses_encoders(parts, files)
    assert not uses_encoders(parts, {**files, "vae/d": "4"})
    assert not uses_encoders({}, files)
