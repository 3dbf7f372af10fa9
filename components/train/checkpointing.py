"""Checkpoints written behind the training: copy out, keep training, write, and commit when every rank is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from components.errors import StorageError
from components.model.checkpoints import Piece, Save, commit, prune, write_part
from components.storage.base import Storage
from components.train.config import TrainConfig
from components.train.processes.collectives import first_problem, shared_token

# Between two checks whether all parts are there: short at first, for a local folder, then longer, for an object store.
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.02, 0.5
_RETRY_SECONDS = (0.5, 2.0, 8.0)
# After a crash: less than the time that the agent gives the remaining ranks.
_LAST_SECONDS = 3.0


class Saver:
    """Saves this rank's part in a thread; another thread of rank 0 commits. Every rank makes the same calls.

    Args:
        run: The run's folder.
        rank: This process's rank.
        world: The number of ranks.
        training: The identity of what is trained.
        shapes: Every parameter's shape.
        config: The training's settings: which checkpoints stay.
        failed: Called if a save could not be written, with its step and the reason.
    """

    def __init__(
        self,
        run: Storage,
        rank: int,
        world: int,
        training: str,
        shapes: Mapping[str, Sequence[int]],
        config: TrainConfig,
        failed: Callable[[int, str], None],
    ) -> None:
        self._run = run
        self._rank = rank
        self._world = world
        self._attempt = shared_token()
        self._training = training
        self._shapes = shapes
        self._config = config.checkpoint
        self._failed = failed
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="saver")
        self._given_up = threading.Event()
        self._save: Save | None = None
        self._part: Future[None] | None = None
        self._commit: Future[None] | None = None

    def save(self, step: int, counters: Mapping[str, float], copy_out: Callable[[], Sequence[Piece]]) -> float:
        """Copy the state out and start to write it.

        A save that fails is reported and given up: training goes on, and the checkpoint before it remains.

        Returns:
            Seconds that training stood still: waiting for the save before this one, and copying.
        """
        started = time.monotonic()
        self.settle()
        self._start(Save(step, counters, self._world, self._training, self._shapes, self._attempt), copy_out())
        return time.monotonic() - started

    def save_now(self, step: int, counters: Mapping[str, float], copy_out: Callable[[], Sequence[Piece]]) -> float:
        """Save, wait until the checkpoint is committed, and try again if that fails.

        Raises:
            StorageError: If it still fails after the last try.
        """
        started = time.monotonic()
        for pause in (*_RETRY_SECONDS, None):
            self.save(step, counters, copy_out)
            problem = self.settle()
            if problem is None:
                break
            if pause is None:
                raise StorageError(f"the checkpoint of step {step} could not be written: {problem}")
            time.sleep(pause)
        return time.monotonic() - started

    def settle(self) -> str | None:
        """Wait until the last save is committed or given up, and return what went wrong with it."""
        if self._save is None or self._part is None:
            return None
        problem = first_problem(_problem(self._part))
        if problem is None:
            problem = first_problem(_problem(self._commit))
        else:
            self._given_up.set()
            _problem(self._commit)
        if problem is not None and self._rank == 0:
            self._failed(self._save.step, problem)
        self._save = self._part = self._commit = None
        return problem

    def _start(self, save: Save, pieces: Sequence[Piece]) -> None:
        self._given_up.clear()
        self._save = save
        self._part = self._threads.submit(write_part, self._run, save, self._rank, pieces)
        if self._rank == 0:
            self._commit = self._threads.submit(self._commit_when_whole, save)

    def _commit_when_whole(self, save: Save) -> None:
        # The other ranks' records on storage show when they are done: no collective runs beside the training's own.
        pause = _FIRST_POLL_SECONDS
        while not self._given_up.is_set():
            if commit(self._run, save):
                prune(self._run, self._config.keep, self._config.keep_every, save.step)
                return
            time.sleep(pause)
            pause = min(1.25 * pause, _LAST_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A peer is gone, or this rank has failed; what is being written may be whole all the same in a moment.
        wait([future for future in (self._part, self._commit) if future is not None], timeout=_LAST_SECONDS)
        self._given_up.set()
        self._threads.shutdown(wait=kind is None, cancel_futures=True)


def _problem(future: Future[None] | None) -> str | None:
    """Wait for a write and return why it failed; None if it did not fail, or if there was nothing to write."""
    error = None if future is None else future.exception()
    if error is None:
        return None
    if isinstance(error, StorageError):
        return str(error)
    raise error
