"""Proof that a dataset is what was committed: every digest compared, every sample decoded, every header accounted for.

Training trusts a tar for its digest and its index for where the samples lie. Here nothing is trusted: the tar must
consist of the index's members, one after the other, plain files each, and of nothing else. So what another program
would make of it, with its links, its absolute paths or its pickles, does not come up.
"""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np

from components.dataset.format import BLOCK, ShardIndex, read_index
from components.dataset.reader import ShardReader
from components.dataset.tars import WHAT_TO_DO, Tar, open_whole
from components.dataset.versions import Dataset, Shard
from components.errors import DarkroomError, DataError
from components.storage.base import Storage


class Verdict(NamedTuple):
    """What became of one shard: its size, and what is wrong with it; nothing where nothing is."""

    shard: Shard
    problem: str


def verify(storage: Storage, dataset: Dataset, workers: int) -> Iterator[Verdict]:
    """Yield a verdict on each shard of a dataset, in order.

    Args:
        storage: The dataset's folder.
        dataset: Which shards there are, and their digests.
        workers: How many shards are looked at side by side. Those that are not local are in memory meanwhile.
    """

    def judge(shard: Shard) -> Verdict:
        try:
            check_shard(storage, shard)
        except DarkroomError as error:
            return Verdict(shard, str(error))
        return Verdict(shard, "")

    with closing(_side_by_side(judge, dataset.shards, workers)) as verdicts:
        yield from verdicts


def check_shard(storage: Storage, shard: Shard) -> None:
    """Check one shard against what the dataset has of it.

    Raises:
        DataError: With the shard's name, and what is wrong with it.
        StorageError: Where it cannot be read.
    """
    opened: list[Tar] = []

    def open_tar(storage: Storage, key: str, size: int, sha256: str, verify: bool) -> Tar:
        opened.append(open_whole(storage, key, size, sha256, verify))
        return opened[0]

    reader = ShardReader(storage, shard.name, shard.sha256, verify=True, open_tar=open_tar)
    index = read_index(storage, shard.name)
    if (index.sha256, index.bytes, len(index.samples)) != (shard.sha256, shard.bytes, shard.samples):
        raise DataError(f"shard {shard.name}: its index is not that of the tar that was committed; {WHAT_TO_DO}")
    if not all(0 <= i < shard.samples for i in (*shard.held_out, *shard.tombstones)):
        raise DataError(f"shard {shard.name}: the dataset marks samples that it does not have; run index again")
    whole = opened[0].whole
    assert whole is not None
    check_members(shard.name, whole, index)
    for i, entry in enumerate(index.samples):
        sample = reader.sample(i)
        told = (sample.meta.get("sha256"), sample.meta.get("caption_digest"), sample.meta.get("variant", 0))
        if told != entry.id:
            raise DataError(f"shard {shard.name}: sample {i} ({entry.key}) tells of another image; {WHAT_TO_DO}")
        pooled = [sample.added.pooled] if sample.added is not None else []
        if not all(np.isfinite(numbers).all() for numbers in (sample.moments, sample.text, *pooled)):
            raise DataError(
                f"shard {shard.name}: sample {i} ({entry.key}) has values that are not finite; {WHAT_TO_DO}"
            )


def check_members(name: str, tar: memoryview, index: ShardIndex) -> None:
    """Check that a tar consists of its index's members in their order, plain files each, and of nothing else.

    Args:
        name: The shard's name.
        tar: All bytes of its tar.
        index: What it should hold.

    Raises:
        DataError: With the first thing that is otherwise.
    """
    expected = [
        (f"{entry.key}.{suffix}", *place)
        for entry in index.samples
        for suffix, place in sorted(entry.offsets.items(), key=lambda item: item[1])
    ]
    at = 0
    for member, start, size in expected:
        header = _parse(name, tar, at)
        if (header.name, header.size, at + BLOCK) != (member, size, start) or header.type != tarfile.REGTYPE:
            found = f"{header.name[:200]!a} of {header.size} bytes and type {header.type!r}"
            raise DataError(f"shard {name}: it has {found} where its index has {member}; {WHAT_TO_DO}")
        at = start + -(-size // BLOCK) * BLOCK
    if any(tar[at:]):
        raise DataError(f"shard {name}: something follows its {len(index.samples)} samples; {WHAT_TO_DO}")


def _parse(name: str, tar: memoryview, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(bytes(tar[at : at + BLOCK]), "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise DataError(f"shard {name}: there is no member at byte {at} ({error}); {WHAT_TO_DO}") from None


def _side_by_side(
    judge: Callable[[Shard], Verdict], shards: Iterable[Shard], workers: int
) -> Generator[Verdict, None, None]:
    """Yield verdicts in order while threads work on those that follow; hashing and reading let other threads run."""
    waiting: deque[Future[Verdict]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for shard in shards:
            waiting.append(pool.submit(judge, shard))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
