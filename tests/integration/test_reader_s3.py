"""Reading a dataset in S3: the same numbers as from a folder, through the cache or range by range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from components.dataset import Dataset, Shard, make_dataset
from components.digests import sha256
from components.errors import DataError
from components.shards import Sample, index_key, npy, pack, tar_key
from components.storage import Storage, open_storage
from components.train.config import TrainConfig
from components.train.reader import Drawing, Reader

# moto's server leaves a socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DRAWING = Drawing(seed=1, timesteps=1000, scaling_factor=1.0, caption_dropout=0.1)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="data")
    yield "s3://data/datasets/key"
    server.stop()


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
    storage.write("empty.npy", npy(np.zeros((3, 4), np.float16)))
    return make_dataset("key", {}, shards, rejected=0)


def numbers(dataset: Dataset, storage: Storage, config: TrainConfig) -> list[bytes]:
    """Return what ten steps of two ranks are trained with."""
    readers = [Reader(dataset, storage, DRAWING, config, rank, world=2) for rank in range(2)]
    read = [batch for reader in readers for batches in reader.steps(0, 10) for batch in batches]
    for reader in readers:
        reader.close()
    return [tensor.numpy().tobytes() for batch in read for tensor in (batch.latents, batch.text, batch.timesteps)]


def test_s3_gives_what_a_folder_gives(bucket: str, tmp_path: Path) -> None:
    local, remote = open_storage(str(tmp_path / "dataset")), open_storage(bucket)
    dataset = fill(local)
    assert fill(remote) == dataset
    config = TrainConfig(global_batch=10, micro_batch=3, window=2, cache=str(tmp_path / "cache"))
    expected = numbers(dataset, local, config)

    assert numbers(dataset, remote, config) == expected
    copies = {path.name for path in (tmp_path / "cache").iterdir()}
    assert copies == {f"{shard.sha256}.tar" for shard in dataset.shards}
    assert numbers(dataset, remote, config.model_copy(update={"remote_shards": "range", "cache": ""})) == expected

    for shard in dataset.shards:
        remote.delete(tar_key(shard.name))
    assert numbers(dataset, remote, config) == expected, "the copies are enough"
    with pytest.raises(DataError, match="is missing"):
        numbers(dataset, remote, config.model_copy(update={"cache": str(tmp_path / "another")}))
