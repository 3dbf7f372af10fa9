"""The shards that a rank has open now, and those that threads open ahead of their use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from components.dataset.reader import ShardReader
from components.dataset.tars import OpenTar
from components.dataset.versions import Dataset, Shard
from components.errors import DataError
from components.storage.base import Storage


class OpenShard:
    """One open shard, whose samples are numbered as in training: without held-out ones and tombstones.

    Args:
        entry: The shard's entry in the dataset.
        reader: The same shard, open.
    """

    def __init__(self, entry: Shard, reader: ShardReader) -> None:
        if len(reader) != entry.samples:
            raise DataError(
                f"shard {entry.name} holds {len(reader)} samples, expected {entry.samples}; run index again"
            )
        self.reader = reader
        untrained = np.array(sorted(untrained_samples(entry)), dtype=np.int64)
        # Each untrained sample shifts the numbers by one, from this training sample on.
        self._shifts = untrained - np.arange(len(untrained))

    def local(self, numbers: NDArray[np.int64]) -> list[int]:
        """Map numbers among the training samples to numbers in the shard."""
        if len(self._shifts):
            numbers = numbers + self._shifts.searchsorted(numbers, side="right")
        local: list[int] = numbers.tolist()
        return local


class OpenShards:
    """Opens shards when they are needed, or ahead of that, and closes the least recently used ones.

    Args:
        dataset: The committed dataset.
        storage: Its folder.
        open_tar: Opens a shard's tar.
        limit: Number of open shards, at most.
        verify: Whether a shard's digest is checked when it is first opened.
        skip_bad: Whether a shard that is corrupt or missing is skipped instead of ending the training.
        threads: Number of shards that are opened ahead at the same time.

    Attributes:
        bad: The names of the shards that are skipped, and why.
    """

    def __init__(
        self,
        dataset: Dataset,
        storage: Storage,
        open_tar: OpenTar,
        *,
        limit: int,
        verify: bool,
        skip_bad: bool,
        threads: int,
    ) -> None:
        self.bad: dict[str, str] = {}
        self._shards: Sequence[Shard] = dataset.shards
        self._storage = storage
        self._open_tar = open_tar
        self._limit = limit
        self._skip_bad = skip_bad
        self._unverified = np.full(len(dataset.shards), verify)
        self._lock = Lock()
        self._open: OrderedDict[int, Future[OpenShard]] = OrderedDict()
        self._ready: dict[int, OpenShard] = {}  # the same, without those that are still being opened
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shards")

    def get(self, shard: int) -> OpenShard | None:
        """Return an open shard; None if it is skipped.

        Raises:
            DataError: If it is corrupt or missing and may not be skipped.
            StorageError: If it cannot be reached.
        """
        if (ready := self._ready.get(shard)) is not None:
            return ready
        with self._lock:
            future = self._open.get(shard)
            # If it still waits for a thread, or the store could not be reached, this thread opens it.
            mine = future is None or future.cancel() or _failed(future)
            if future is None or mine:
                future = self._open[shard] = Future()
                future.set_running_or_notify_cancel()
            self._use(shard)
        if mine:
            self._run(shard, future)
        try:
            return self._ready.setdefault(shard, future.result())
        except DataError as error:
            self.skip(self._shards[shard].name, error)
            return None

    def skip(self, name: str, error: DataError) -> None:
        """Skip a bad shard from now on.

        Raises:
            DataError: The same error, if no shard may be skipped.
        """
        if not self._skip_bad:
            raise error
        self.bad[name] = str(error)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Begin to open shards that are not open yet; errors are raised when they are used."""
        with self._lock:
            for shard in shards:
                if shard not in self._open:
                    self._open[shard] = self._threads.submit(self._read, shard)
                self._use(shard)

    def close(self) -> None:
        """Stop opening shards ahead, and close those that are open."""
        self._threads.shutdown(cancel_futures=True)
        self._open.clear()
        self._ready.clear()

    def _use(self, shard: int) -> None:
        self._open.move_to_end(shard)
        while len(self._open) > self._limit:
            closed, future = self._open.popitem(last=False)
            future.cancel()
            self._ready.pop(closed, None)

    def _run(self, shard: int, future: Future[OpenShard]) -> None:
        try:
            future.set_result(self._read(shard))
        except BaseException as error:
            future.set_exception(error)

    def _read(self, shard: int) -> OpenShard:
        entry = self._shards[shard]
        verify = bool(self._unverified[shard])
        reader = ShardReader(self._storage, entry.name, entry.sha256, verify, self._open_tar)
        self._unverified[shard] = False
        return OpenShard(entry, reader)


def _failed(future: Future[OpenShard]) -> bool:
    """Tell whether a shard could not be opened for a reason that may be temporary."""
    return future.done() and future.exception() is not None and not isinstance(future.exception(), DataError)


def untrained_samples(shard: Shard) -> set[int]:
    """Return the samples of a shard that are not trained on."""
    return {*shard.held_out, *shard.tombstones}
