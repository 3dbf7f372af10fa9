"""A save that fails is told and given up, or tried again, on all ranks alike; on stores that fail once, and always."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.errors import StorageError
from components.model import checkpoints
from components.model.checkpoints import KINDS, Piece
from components.storage.local import LocalStorage
from components.train import checkpointing as saver_module
from components.train.checkpointing import Saver
from components.train.config import TrainConfig

ALWAYS = 10**6
# In the order in which they are written.
FILES = ("rank-00000.safetensors", "rank-00000.json", "manifest.json", "COMMIT")


class Unsteady(LocalStorage):
    """A folder that fails to take some file so many times, and waits until it may go on."""

    def __init__(self, root: Path, file: str = "", fails: int = 0, error: Exception | None = None) -> None:
        super().__init__(root)
        self.file = file
        self.fails = fails
        self.error = error or StorageError("the store is away")
        self.open = threading.Event()
        self.open.set()

    def write(self, key: str, data: bytes) -> None:
        self.open.wait()
        if key.endswith(self.file) and self.fails:
            self.fails -= 1
            raise self.error
        super().write(key, data)


class Told:
    """Keeps what a saver tells of saves that failed."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.problems: set[str] = set()

    def __call__(self, step: int, problem: str) -> None:
        self.steps.append(step)
        self.problems.add(problem)


def pieces(step: int) -> list[Piece]:
    return [Piece("w", 0, {kind: np.full(3, step, dtype=np.float32) for kind in KINDS})]


def make_saver(run: LocalStorage, told: Told, rank: int = 0, world: int = 1, **settings: Any) -> Saver:
    config = TrainConfig.parse({"checkpoint": {"keep": 9, **settings}})
    return Saver(run, rank, world, "training", {"w": (3 * world,)}, config, told)


def committed(run: LocalStorage) -> list[int]:
    found = [one for one in checkpoints.candidates(run, "training") if isinstance(one, checkpoints.Checkpoint)]
    for one in found:
        one.verify()
        assert one.read("master", "w", 0, 1) == one.step
    return [one.step for one in found]


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    meeting = tmp_path_factory.mktemp("meeting") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("file", FILES)
def test_a_save_that_failed_once_is_told_and_the_next_one_is_whole(tmp_path: Path, file: str) -> None:
    run, told = Unsteady(tmp_path, file, fails=1), Told()
    with make_saver(run, told) as saver:
        saver.save(10, {}, lambda: pieces(10))
        saver.save(20, {}, lambda: pieces(20))
        assert (told.steps, told.problems) == ([10], {"the store is away"})
        assert saver.settle() is None
    assert committed(run) == [20]
    assert told.steps == [10]


@pytest.mark.parametrize("file", FILES)
def test_the_last_save_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setattr(saver_module, "_RETRY_SECONDS", (0.0, 0.0))
    run, told = Unsteady(tmp_path, file, fails=2), Told()
    with make_saver(run, told) as saver:
        saver.save_now(10, {}, lambda: pieces(10))
        assert committed(run) == [10]
    assert told.steps == [10, 10]


def test_a_last_save_that_always_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "_RETRY_SECONDS", (0.0, 0.0))
    run, told = Unsteady(tmp_path, "COMMIT", fails=ALWAYS), Told()
    with make_saver(run, told) as saver:
        saver.save(10, {}, lambda: pieces(10))
        with pytest.raises(StorageError, match="the checkpoint of step 20 could not be written: the store is away"):
            saver.save_now(20, {}, lambda: pieces(20))
    assert told.steps == [10, 20, 20, 20]
    assert committed(run) == []


def test_a_mistake_of_ours_is_not_taken_for_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "_LAST_SECONDS", 0.1)
    run, told = Unsteady(tmp_path, "json", fails=1, error=ValueError("a bug")), Told()
    with pytest.raises(ValueError, match="a bug"), make_saver(run, told) as saver:
        saver.save_now(10, {}, lambda: pieces(10))
    assert told.steps == []


def test_training_goes_on_while_a_store_is_slow_and_waits_before_the_next_save(tmp_path: Path) -> None:
    run, told = Unsteady(tmp_path), Told()
    run.open.clear()
    copied: list[int] = []

    def copy_out(step: int) -> list[Piece]:
        copied.append(step)
        assert committed(run) == ([10] if step == 20 else []), "the save before this one is done"
        return pieces(step)

    with make_saver(run, told) as saver:
        saver.save(10, {}, lambda: copy_out(10))
        assert copied == [10], "what is trained next must not get into it"
        run.open.set()
        saver.save(20, {}, lambda: copy_out(20))
        saver.settle()
    assert committed(run) == [20, 10]


def test_what_is_being_written_when_training_fails_is_committed_all_the_same(tmp_path: Path) -> None:
    run = Unsteady(tmp_path)
    run.open.clear()
    with contextlib.suppress(RuntimeError), make_saver(run, Told()) as saver:
        saver.save(10, {}, lambda: pieces(10))
        threading.Timer(0.2, run.open.set).start()
        raise RuntimeError("a peer is gone")
    assert committed(run) == [10]


def test_older_checkpoints_go_when_a_newer_one_is_committed(tmp_path: Path) -> None:
    run = Unsteady(tmp_path)
    with make_saver(run, Told(), keep=2, keep_every=30) as saver:
        for step in (10, 20, 30, 40, 50):
            saver.save_now(step, {}, lambda step=step: pieces(step))  # type: ignore[misc]
    assert committed(run) == [50, 40, 30]


def run_rank(rank: int, meeting: str, folder: str) -> None:
    """Save three times as one of two ranks; the store takes rank 1's first part not."""
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    run, told = Unsteady(Path(folder), "rank-00001.json", fails=1), Told()
    with make_saver(run, told, rank, 2) as saver:
        problems = []
        for step in (10, 20):
            saver.save(step, {}, lambda step=step: [Piece("w", 3 * rank, pieces(step)[0].arrays)])  # type: ignore[misc]
            problems.append(saver.settle())
    Path(folder, f"told-{rank}.json").write_text(json.dumps([problems, told.steps]))
    torch.distributed.destroy_process_group()


def test_a_part_that_one_rank_could_not_write_is_given_up_by_all(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    meeting = f"file://{tmp_path}/meeting"
    ranks = [context.Process(target=run_rank, args=(rank, meeting, str(tmp_path)), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told == [[["the store is away", None], [10]], [["the store is away", None], []]], "rank 0 speaks for all"
    assert committed(LocalStorage(tmp_path)) == [20]
