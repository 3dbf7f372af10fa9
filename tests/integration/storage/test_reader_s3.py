"""Reading a dataset in S3: the same numbers as from a folder, through the cache or range by range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, index_key, pack, tar_key
from components.dataset.versions import Dataset, Shard, make_dataset
from components.digests import sha256
from components.errors import DataError
from components.storage.base import Storage
from components.storage.open import open_storage
from components.storage.s3 import S3Storage
from components.train.config import TrainConfig
from components.train.data.reader import Drawing, Reader

DRAWING = Drawing(seed=1, timesteps=1000, scaling_factor=1.0, caption_dropout=0.1)


def fill(storage: Storage) -> Dataset:
    shards, rng = [], np.random.default_rng(0)
    for shard in range(5):
        samples = [
            Sample(
                sha256(b"%d-%d" % (shard, number)),
                rng.normal(size=(8, 4, 4)).astype(np.float16),
                rng.normal(size=(3, 4)).astype(np.float16),
                {"caption_digest": ""},
            )
            for number in range(20)
        ]
        tar, index = pack(samples)
        name = f"shards/32x32/{shard:016x}"
        storage.write(tar_key(name), tar)
        storage.write(index_key(name), index)
        shards.append(Shard(name, (32, 32), 20, len(tar), sha256(tar)))
    write_empty_prompt(storage, EmptyPrompt(np.zeros((3, 4), np.float16)))
    return make_dataset("key", {}, shards, rejected=0)


def settings(**data: Any) -> TrainConfig:
    return TrainConfig.parse({"global_batch": 10, "micro_batch": 3, "data": {"window": 2, **data}})


def numbers(dataset: Dataset, storage: Storage, config: TrainConfig) -> list[bytes]:
    """Return what five steps of two ranks are trained with."""
    readers = [Reader(dataset, storage, DRAWING, config, rank, world=2) for rank in range(2)]
    read = [batch for reader in readers for batches in reader.steps(0, 5) for batch in batches]
    for reader in readers:
        reader.close()
    return [tensor.numpy().tobytes() for batch in read for tensor in (batch.latents, batch.text, batch.timesteps)]


def test_s3_gives_what_a_folder_gives(s3: S3Storage, tmp_path: Path) -> None:
    local, remote = open_storage(str(tmp_path / "dataset")), open_storage(s3.url)
    dataset = fill(local)
    assert fill(remote) == dataset
    config = settings(cache=str(tmp_path / "cache"))
    expected = numbers(dataset, local, config)

    assert numbers(dataset, remote, config) == expected
    copies = {path.name for path in (tmp_path / "cache").iterdir()}
    assert copies == {f"{shard.sha256}.tar" for shard in dataset.shards}
    assert numbers(dataset, remote, settings(remote_shards="range")) == expected

    for shard in dataset.shards:
        remote.delete(tar_key(shard.name))
    assert numbers(dataset, remote, config) == expected, "the copies are enough"
    with pytest.raises(DataError, match="is missing"):
        numbers(dataset, remote, settings(cache=str(tmp_path / "another")))
