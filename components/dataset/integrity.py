"""Checks that a dataset is what was committed: compares every digest, decodes every sample, checks every tar header.

Training trusts a tar if it has the right digest, and its index for the positions of samples. Here nothing is trusted: a
tar must consist of the members in the index, one after the other, each a plain file, and of nothing else. So a tar that
passes holds no links, absolute paths or pickles that could harm another program which reads it.
"""

from __future__ import annotations

import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple, TypeVar

import numpy as np

from components.dataset.format import BLOCK, ShardIndex, read_index
from components.dataset.reader import ShardReader
from components.dataset.tars import WHAT_TO_DO, Tar, open_whole
from components.dataset.versions import Dataset, Shard
from components.errors import DarkroomError, DataError
from components.storage.base import Storage

T = TypeVar("T")
R = TypeVar("R")


class IntegrityResult(NamedTuple):
    """One shard, and what is wrong with it; an empty text if it is intact."""

    shard: Shard
    problem: str


def verify(storage: Storage, dataset: Dataset, workers: int) -> Iterator[IntegrityResult]:
    """Yield the result for each shard of a dataset, in order.

    Args:
        storage: The dataset's folder.
        dataset: Its shards and their digests.
        workers: How many shards are checked at the same time; each is in memory meanwhile if it is not local.
    """

    def check(shard: Shard) -> IntegrityResult:
        try:
            check_shard(storage, shard)
        except DarkroomError as error:
            return IntegrityResult(shard, str(error))
        return IntegrityResult(shard, "")

    with closing(side_by_side(check, dataset.shards, workers)) as results:
        yield from results


def check_shard(storage: Storage, shard: Shard) -> None:
    """Check one shard against the dataset's record of it.

    Raises:
        DataError: With the shard's name, and what is wrong with it.
        StorageError: If it cannot be read.
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
        raise DataError(
            f"shard {shard.name}: the dataset marks samples as held out or removed that are not among its "
            f"{shard.samples}; run index again"
        )
    whole = opened[0].whole
    assert whole is not None
    check_members(shard.name, whole, index)
    for i, entry in enumerate(index.samples):
        sample = reader.sample(i)
        meta_id = (sample.meta.get("sha256"), sample.meta.get("caption_digest"), sample.meta.get("variant", 0))
        if meta_id != entry.id:
            raise DataError(
                f"shard {shard.name}: the JSON of sample {i} ({entry.key}) is that of another sample; {WHAT_TO_DO}"
            )
        pooled = [sample.added.pooled] if sample.added is not None else []
        if not all(np.isfinite(numbers).all() for numbers in (sample.moments, sample.text, *pooled)):
            raise DataError(
                f"shard {shard.name}: sample {i} ({entry.key}) has values that are not finite; {WHAT_TO_DO}"
            )


def check_members(name: str, tar: memoryview, index: ShardIndex) -> None:
    """Check that a tar consists of its index's members in their order, each a plain file, and of nothing else.

    Args:
        name: The shard's name.
        tar: All bytes of its tar.
        index: Its index.

    Raises:
        DataError: With the first difference.
    """
    expected = [
        (f"{entry.key}.{suffix}", *offset)
        for entry in index.samples
        for suffix, offset in sorted(entry.offsets.items(), key=lambda item: item[1])
    ]
    at = 0
    for member, start, size in expected:
        header = _parse(name, tar, at)
        if (header.name, header.size, at + BLOCK) != (member, size, start) or header.type != tarfile.REGTYPE:
            actual = f"{header.name[:200]!a} of {header.size} bytes and type {header.type!r} at byte {at}"
            expected_member = f"{member} of {size} bytes at byte {start - BLOCK}"
            raise DataError(f"shard {name}: its tar has {actual}, its index {expected_member}; {WHAT_TO_DO}")
        at = start + -(-size // BLOCK) * BLOCK
    if any(tar[at:]):
        raise DataError(f"shard {name}: more data follows its {len(index.samples)} samples; {WHAT_TO_DO}")


def _parse(name: str, tar: memoryview, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(bytes(tar[at : at + BLOCK]), "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise DataError(f"shard {name}: there is no member at byte {at} ({error}); {WHAT_TO_DO}") from None


def side_by_side(check: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Yield results in order while threads work on the next items; hashing and reading release the GIL."""
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for item in items:
            pending.append(pool.submit(check, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
