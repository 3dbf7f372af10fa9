"""Open shards: each opened once however many ask, no more open than allowed, and none waited for in a queue."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pytest

from components.dataset.format import Sample, index_key, pack, tar_key
from components.dataset.tars import WholeTar, open_whole
from components.dataset.versions import Dataset, Shard, make_dataset
from components.digests import sha256
from components.errors import DataError
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.data.open_shards import OpenShard, OpenShards


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@pytest.fixture
def dataset(storage: Storage) -> Dataset:
    shards = []
    for shard in range(8):
        arrays = np.full((2, 1, 1), shard, np.float16), np.zeros((1, 1), np.float16)
        samples = [Sample(sha256(b"%d-%d" % (shard, i)), *arrays, {"caption_digest": ""}) for i in range(6)]
        tar, index = pack(samples)
        name = f"shards/8x8/{shard:016x}"
        storage.write(tar_key(name), tar)
        storage.write(index_key(name), index)
        shards.append(Shard(name, (8, 8), 6, len(tar), sha256(tar), held_out=(0, 4), tombstones=(1,)))
    return make_dataset("key", {}, shards, rejected=0)


class Opener:
    """Opens tars, notes which, and waits before a shard's until it may go on."""

    def __init__(self, *held: int) -> None:
        self.opened: list[str] = []
        self.verified: list[str] = []
        self.waiting, self.go_on = Event(), Event()
        self._held = {f"shards/8x8/{shard:016x}.tar" for shard in held}
        self._lock = Lock()

    def __call__(self, storage: Storage, key: str, size: int, digest: str, verify: bool) -> WholeTar:
        with self._lock:
            self.opened.append(key)
            self.verified += [key] * verify
        if key in self._held:
            self.waiting.set()
            assert self.go_on.wait(60)
        return open_whole(storage, key, size, digest, verify)


def open_shards(dataset: Dataset, storage: Storage, opener: Opener, limit: int = 8, threads: int = 1) -> OpenShards:
    return OpenShards(dataset, storage, opener, limit=limit, verify=True, skip_bad=False, threads=threads)


def first_value(shard: OpenShard | None) -> float:
    assert shard is not None
    return float(shard.reader.sample(0).moments.ravel()[0])


def test_training_samples_are_counted_without_those_left_out(dataset: Dataset, storage: Storage) -> None:
    shard = open_shards(dataset, storage, Opener()).get(2)
    assert shard is not None
    assert shard.local(np.array([2, 0, 1])) == [5, 2, 3] == [dataset.shards[2].train[i] for i in (2, 0, 1)]


def test_no_more_are_open_than_allowed_and_digests_are_checked_once(dataset: Dataset, storage: Storage) -> None:
    opener = Opener()
    shards = open_shards(dataset, storage, opener, limit=3)
    for shard in [0, 1, 2, 0, 1, 2, 3, 0]:  # opening 3 closes 0
        assert first_value(shards.get(shard)) == shard
    numbers = [int(Path(key).stem, 16) for key in opener.opened]
    assert numbers == [0, 1, 2, 3, 0]
    assert len(opener.verified) == 4, "not again when it is opened again"


def test_what_is_prefetched_again_stays_open(dataset: Dataset, storage: Storage) -> None:
    opener = Opener()
    shards = open_shards(dataset, storage, opener, limit=3)
    for shard in [0, 1, 2]:
        shards.get(shard)
    shards.prefetch([0])
    shards.get(3)
    shards.get(0)
    assert len(opener.opened) == 4


def test_many_who_ask_wait_for_one_who_opens(dataset: Dataset, storage: Storage) -> None:
    opener = Opener(5)
    shards = open_shards(dataset, storage, opener)
    with ThreadPoolExecutor(4) as threads:
        requests = [threads.submit(shards.get, 5) for _ in range(4)]
        assert opener.waiting.wait(60)
        opener.go_on.set()
        assert {first_value(future.result()) for future in requests} == {5.0}
    assert len(opener.opened) == 1


def test_what_waits_in_the_queue_is_opened_by_who_needs_it(dataset: Dataset, storage: Storage) -> None:
    opener = Opener(0)
    shards = open_shards(dataset, storage, opener)
    shards.prefetch(range(8))
    assert opener.waiting.wait(60)
    assert first_value(shards.get(6)) == 6, "while the one thread is still at shard 0"
    opener.go_on.set()
    assert [first_value(shards.get(shard)) for shard in range(8)] == list(range(8))
    assert sorted(opener.opened) == sorted(tar_key(shard.name) for shard in dataset.shards)
    shards.close()


def test_dataset_that_disagrees_with_its_shards_is_told(dataset: Dataset, storage: Storage) -> None:
    shard = dataset.shards[0]
    wrong = make_dataset("key", {}, [Shard(shard.name, shard.bucket, 7, shard.bytes, shard.sha256)], rejected=0)
    with pytest.raises(DataError, match=r"6 samples.* 7"):
        open_shards(wrong, storage, Opener()).get(0)
