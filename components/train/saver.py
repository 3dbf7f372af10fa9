"""Checkpoints written behind the training: copy out, keep training, write, and commit when every rank is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from components.checkpoints import Piece, commit, prune, write_part
from components.errors import StorageError
from components.storage import Storage

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 600.0


class Saver:
    """Writes this rank's parts in a thread; rank 0's thread also commits.

    Args:
        run: The run's folder.
        rank: This process's place among the ranks.
        world: The number of ranks.
        attempt: A token that all ranks of this gang share.
        training: The identity of what is trained.
        shapes: Every parameter's shape.
        keep: How many checkpoints stay.
    """

    def __init__(
        self,
        run: Storage,
        rank: int,
        world: int,
        attempt: str,
        training: str,
        shapes: Mapping[str, Sequence[int]],
        keep: int,
    ) -> None:
        self._run = run
        self._rank = rank
        self._world = world
        self._attempt = attempt
        self._training = training
        self._shapes = shapes
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None

    def save(self, step: int, copy_out: Callable[[], Sequence[Piece]]) -> float:
        """Copy the state out and start to write it.

        Returns:
            Seconds that training stood still: waiting for the write before this one, and copying.
        """
        started = time.monotonic()
        self.wait()
        self._pending = self._thread.submit(self._write, step, copy_out())
        return time.monotonic() - started

    def wait(self) -> None:
        """Block until the last save is committed.

        Raises:
            StorageError: Where it could not be written.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, step: int, pieces: Sequence[Piece]) -> None:
        write_part(self._run, step, self._rank, pieces, self._attempt)
        if self._rank == 0:
            self._commit(step)

    def _commit(self, step: int) -> None:
        # The other ranks' notes on storage say when they are done: no collective runs beside the training's own.
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not commit(self._run, step, self._world, self._attempt, self._training, self._shapes):
            if time.monotonic() > deadline:
                raise StorageError(f"checkpoint of step {step}: not all {self._world} ranks wrote their part")
            time.sleep(_POLL_SECONDS)
        prune(self._run, self._keep, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=kind is None, cancel_futures=True)
