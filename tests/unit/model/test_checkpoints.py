from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.digests import sha256
from components.errors import DataError
from components.model import checkpoints
from components.model.checkpoints import KINDS, Checkpoint, Piece, Save
from components.storage.base import Storage
from components.storage.local import LocalStorage
from components.storage.open import open_storage
from tests.stores.mortal import contents, killed_everywhere

SHAPES = {"a.weight": (3, 4), "b": (5,)}
WHOLE = {kind: {"a.weight": np.arange(12) + 100 * i, "b": np.arange(5) - 10 * i} for i, kind in enumerate(KINDS)}


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def pieces(rank: int, world: int) -> list[Piece]:
    pieces = []
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        start, end = rank * size // world, (rank + 1) * size // world
        if end > start:
            arrays = {kind: WHOLE[kind][name][start:end].astype(np.float32) for kind in KINDS}
            pieces.append(Piece(name, start, arrays))
    return pieces


def saving(step: int, world: int, attempt: str = "x", training: str = "t") -> Save:
    return Save(step, {"updates": step - 1}, world, training, SHAPES, attempt)


def save(run: Storage, step: int, world: int, attempt: str = "x", training: str = "t") -> None:
    what = saving(step, world, attempt, training)
    for rank in range(world):
        checkpoints.write_part(run, what, rank, pieces(rank, world))
    assert checkpoints.commit(run, what)


def newest(run: Storage) -> Checkpoint:
    checkpoint = checkpoints.newest(run)
    assert checkpoint is not None
    return checkpoint


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_any_range_is_read_back_whatever_the_world_size(run: Storage, world: int) -> None:
    save(run, 10, world)
    checkpoint = newest(run)
    checkpoint.verify()
    assert (checkpoint.step, checkpoint.counters, checkpoint.training) == (10, {"updates": 9}, "t")
    for kind in KINDS:
        for name, shape in SHAPES.items():
            np.testing.assert_array_equal(checkpoint.read_all(kind)[name], WHOLE[kind][name].reshape(shape))
            for start in range(5):
                expected = WHOLE[kind][name][start : start + 2]
                np.testing.assert_array_equal(checkpoint.read(kind, name, start, len(expected)), expected)


def test_it_is_not_committed_before_every_rank_is_done(run: Storage) -> None:
    checkpoints.write_part(run, saving(10, 2), 0, pieces(0, 2))
    assert not checkpoints.commit(run, saving(10, 2))
    assert checkpoints.newest(run) is None


def test_a_part_of_an_earlier_gang_does_not_count(run: Storage) -> None:
    checkpoints.write_part(run, saving(10, 2, "earlier"), 1, pieces(1, 2))
    checkpoints.write_part(run, saving(10, 2, "now"), 0, pieces(0, 2))
    assert not checkpoints.commit(run, saving(10, 2, "now"))


@pytest.mark.parametrize("name", ["COMMIT", "manifest.json"])
def test_without_commit_or_manifest_the_one_before_is_newest(run: Storage, name: str) -> None:
    save(run, 10, 2)
    save(run, 20, 2)
    run.delete(f"{checkpoints.folder(20)}/{name}")
    assert newest(run).step == 10


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_part_is_found_and_named(run: Storage, damage: str, rank: int) -> None:
    save(run, 10, 2)
    key = f"{checkpoints.folder(10)}/rank-{rank:05d}.safetensors"
    data = run.read(key)
    if damage == "delete":
        run.delete(key)
    else:
        run.write(key, data[:-1] if damage == "truncate" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match=f"rank-{rank:05d}.safetensors"):
        newest(run).verify()


def test_a_changed_manifest_is_refused(run: Storage) -> None:
    save(run, 10, 1)
    key = f"{checkpoints.folder(10)}/manifest.json"
    run.write(key, run.read(key).replace(b'"step": 10', b'"step": 11'))
    with pytest.raises(DataError, match="not the one that was committed"):
        checkpoints.open_checkpoint(run, 10)
    run.write(f"{checkpoints.folder(10)}/COMMIT", b"\xff\xfe")  # no text at all
    with pytest.raises(DataError, match="not the one that was committed"):
        checkpoints.open_checkpoint(run, 10)


def test_one_of_another_format_is_refused(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoints, "FORMAT", 1)
        save(run, 10, 1)
    with pytest.raises(DataError, match="has format 1, this version reads 2"):
        checkpoints.open_checkpoint(run, 10)


def test_elements_that_no_part_holds_are_missed(run: Storage) -> None:
    half = saving(10, 1)
    checkpoints.write_part(run, half, 0, pieces(0, 2))
    assert checkpoints.commit(run, half)
    with pytest.raises(DataError, match=r"holds 6 of 12 elements of ema a\.weight"):
        newest(run).read("ema", "a.weight")


class Watched(LocalStorage):
    """A folder that keeps the order in which files are written, and is killed before it has deleted a tree."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []

    def write(self, key: str, data: bytes) -> None:
        super().write(key, data)
        self.written.append(key.rpartition("/")[2])

    def delete_tree(self, prefix: str) -> None:
        raise KeyboardInterrupt


def test_what_makes_a_checkpoint_count_is_written_last(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    save(run, 10, 2)
    parts = [f"rank-0000{rank}.{suffix}" for rank in (0, 1) for suffix in ("safetensors", "json")]
    assert run.written == [*parts, "manifest.json", "COMMIT"]


@pytest.mark.parametrize(
    "delete", [lambda run: checkpoints.prune(run, 1, None, 20), lambda run: checkpoints.discard_after(run, 0)]
)
def test_one_that_is_deleted_half_does_not_count(tmp_path: Path, delete: Callable[[Storage], None]) -> None:
    run = Watched(tmp_path)
    save(run, 10, 1)
    save(run, 20, 1)
    with pytest.raises(KeyboardInterrupt):
        delete(run)
    left = [found.step for found in checkpoints.candidates(run) if isinstance(found, Checkpoint)]
    assert len(left) == 1


def test_those_of_another_training_are_passed_over_and_named(run: Storage) -> None:
    save(run, 10, 1, training="mine")
    save(run, 20, 1, training="other")
    candidates = list(checkpoints.candidates(run, "mine"))
    assert "another training" in str(candidates[0])
    assert isinstance(candidates[1], Checkpoint)
    assert candidates[1].step == 10


def test_prune_keeps_the_newest_and_discard_removes_what_lies_beyond(run: Storage) -> None:
    for step in (10, 20, 30, 40):
        save(run, step, 1)
    checkpoints.prune(run, keep=2, every=None, newest_step=30)
    assert checkpoints.steps(run) == [40, 30, 20]
    checkpoints.discard_after(run, 20)
    assert checkpoints.steps(run) == [20]


def test_prune_keeps_every_so_manyth(run: Storage) -> None:
    for step in (10, 20, 30, 40, 50):
        save(run, step, 1)
    checkpoints.prune(run, keep=1, every=20, newest_step=50)
    assert checkpoints.steps(run) == [50, 40, 20]


def saved(run: Storage, *steps: int) -> None:
    for step in steps:
        save(run, step, 2)


def whole(run: Storage) -> list[int]:
    """Return the steps of the committed checkpoints, each of which must be whole."""
    found = [one for one in checkpoints.candidates(run) if isinstance(one, Checkpoint)]
    for checkpoint in found:
        checkpoint.verify()
    return [checkpoint.step for checkpoint in found]


def assert_noted_parts_are_whole(run: Storage, folder: str) -> None:
    for entry in run.list(folder):
        if "/rank-" in entry.key and entry.key.endswith(".json"):
            note = run.read_json(entry.key)
            assert sha256(run.read(f"{folder}/{note['file']}")) == note["sha256"]


def test_a_save_killed_anywhere_is_not_committed_and_is_saved_again(tmp_path: Path) -> None:
    killed = 0
    for run in killed_everywhere(lambda run: saved(run, 10), lambda run: saved(run, 20), f"memory://{tmp_path.name}"):
        assert whole(run) == [10]
        assert not run.exists(f"{checkpoints.folder(20)}/COMMIT"), "the marker comes last"
        assert_noted_parts_are_whole(run, checkpoints.folder(20))
        save(run, 20, 2, attempt="another")
        assert whole(run) == [20, 10]
        killed += 1
    assert killed == 6, "two parts, their notes, the manifest and the marker"


@pytest.mark.parametrize(
    ("remove", "left"),
    [
        (lambda run: checkpoints.prune(run, keep=1, every=None, newest_step=30), [40, 30]),
        (lambda run: checkpoints.discard_after(run, 20), [20, 10]),
    ],
    ids=["prune", "discard"],
)
def test_a_reader_sees_no_half_deleted_checkpoint(
    tmp_path: Path, remove: Callable[[Storage], None], left: list[int]
) -> None:
    uninterrupted = open_storage(f"memory://{tmp_path.name}")
    saved(uninterrupted, 10, 20, 30, 40)
    remove(uninterrupted)
    assert whole(uninterrupted) == left
    killed = 0
    for run in killed_everywhere(lambda run: saved(run, 10, 20, 30, 40), remove, f"memory://{tmp_path.name}"):
        assert set(left) <= set(whole(run)) <= {10, 20, 30, 40}
        remove(run)
        assert contents(run) == contents(uninterrupted)
        killed += 1
    assert killed == 12, "two checkpoints of six objects"


@pytest.mark.parametrize("every", [None, 30])
def test_what_was_never_committed_is_none_of_the_checkpoints_that_are_kept(run: Storage, every: int | None) -> None:
    for step in (10, 20, 40):
        save(run, step, 1)
    checkpoints.write_part(run, saving(30, 1), 0, pieces(0, 1))
    checkpoints.prune(run, keep=2, every=every, newest_step=40)
    assert whole(run) == [40, 20]
    assert checkpoints.steps(run) == [40, 20]


def test_equal_states_have_equal_digests(run: Storage) -> None:
    save(run, 10, 2, attempt="first")
    other = open_storage("memory://other")
    save(other, 10, 2, attempt="second")
    assert newest(run).digest == newest(other).digest
