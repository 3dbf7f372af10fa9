"""Going on in a hundred million samples: at once, from the middle of nothing that was read before."""

from __future__ import annotations

import time
from pathlib import Path
from threading import get_ident

import numpy as np
import pytest

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, pack
from components.dataset.versions import Shard, make_dataset
from components.digests import sha256
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, Reader
from tests.stores.memory import MemoryStorage

PER_SHARD = 4096


class Simulated(MemoryStorage):
    """A hundred million samples: every shard has the same bytes. It counts what the calling thread reads."""

    def __init__(self) -> None:
        super().__init__("simulated")
        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=(2, 1, 1)).astype(np.float16), rng.normal(size=(1, 2)).astype(np.float16)]
        samples = [Sample(sha256(b"%d" % i), arrays[0], arrays[1], {"caption_digest": ""}) for i in range(PER_SHARD)]
        self._tar, self._index = pack(samples)
        write_empty_prompt(self, EmptyPrompt(arrays[1]))
        digest = sha256(self._tar)
        shards = [
            Shard(f"shards/8x8/{number:016x}", (8, 8), PER_SHARD, len(self._tar), digest)
            for number in range(10**8 // PER_SHARD + 1)
        ]
        self.dataset = make_dataset("key", {}, shards, rejected=0)
        self.read_by: list[tuple[int, str, int]] = []

    def _object(self, key: str) -> bytes:
        if key.endswith((".tar", ".idx")):
            return self._tar if key.endswith(".tar") else self._index
        return super()._object(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().read(key, start, length)
        self.read_by.append((get_ident(), key, len(data)))
        return data

    def download(self, key: str, path: Path) -> None:
        super().download(key, path)
        self.read_by.append((get_ident(), key, len(self._tar)))


@pytest.fixture(scope="module")
def simulated() -> Simulated:
    return Simulated()


@pytest.mark.parametrize("share", [0.01, 0.99])
@pytest.mark.parametrize("remote_shards", ["cache", "range"])
def test_resume_in_a_hundred_million_samples_takes_less_than_a_second_and_a_shard(
    simulated: Simulated, tmp_path: Path, share: float, remote_shards: str
) -> None:
    seconds = []
    for attempt in range(3):  # other processes may be in the way of one
        data = {"remote_shards": remote_shards, "cache": str(tmp_path / str(attempt)), "shard_threads": 1}
        config = TrainConfig.parse({"global_batch": 64, "micro_batch": 1, "data": data})
        simulated.read_by.clear()
        began = time.perf_counter()
        # Of 64 ranks, so that this rank's share of the first batch is one sample.
        reader = Reader(simulated.dataset, simulated, Drawing(3, 1000, 0.5, 0.1), config, rank=11, world=64)
        assert reader.samples > 10**8 - PER_SHARD
        (batch,) = reader.read(int(share * reader.samples) // 64)
        seconds.append(time.perf_counter() - began)
        here = [record for record in list(simulated.read_by) if record[0] == get_ident() and record[1].endswith(".tar")]
        reader.close()
        assert batch.weights.tolist() == [1.0]
        assert len({key for _, key, _ in here}) <= 1
        assert sum(size for _, _, size in here) <= len(simulated._tar)
    assert min(seconds) < 1
