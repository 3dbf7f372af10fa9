"""The records of a training on another dataset: they are moved into a run of their own, whatever kills the launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import DamagedFile
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.launch.books.earlier_trainings import has_records_of, prepare_records
from tests.stores.mortal import contents, killed_everywhere

RECORDS = ("config.json", "events.jsonl", "metrics.jsonl", "ledger.jsonl", "report.html", "samples/one.png")


@pytest.fixture
def workdir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work"))


def prepare(workdir: Storage, dataset: str) -> tuple[str, str] | None:
    runs = workdir.child("runs")
    kept = prepare_records(runs.child("demo-1"), dataset, runs, "demo-1")
    return None if kept is None else (kept.run, kept.dataset)


def train(workdir: Storage, dataset: str) -> None:
    prepare(workdir, dataset)
    run = workdir.child("runs/demo-1")
    for key in (*RECORDS, "checkpoints/step-000000001/COMMIT", "launch.json", "evaluation/evaluation.json"):
        run.write(key, f"{key} of {dataset}".encode())


def test_the_records_of_the_same_dataset_stay(workdir: Storage) -> None:
    train(workdir, "one")
    before = contents(workdir)
    assert prepare(workdir, "one") is None
    assert contents(workdir) == before
    assert has_records_of(workdir.child("runs/demo-1"), "one")


def test_each_training_before_is_kept_as_a_run_of_its_own(workdir: Storage) -> None:
    for dataset in ("one", "two", "one"):
        train(workdir, dataset)
    assert prepare(workdir, "three") == ("demo-1.3", "one")
    for number, dataset in ((1, "one"), (2, "two"), (3, "one")):
        kept = workdir.child(f"runs/demo-1.{number}")
        assert {key: kept.read(key).decode() for key in RECORDS} == {key: f"{key} of {dataset}" for key in RECORDS}
        assert kept.read_json("lineage.json") == {"dataset": dataset, "continued_as": "demo-1"}
        assert contents(kept).keys() == {*RECORDS, "lineage.json"}
    run = workdir.child("runs/demo-1")
    assert contents(run).keys() == {
        "checkpoints/step-000000001/COMMIT",
        "config.json",
        "launch.json",
        "training.json",
    }
    assert run.read_json("training.json") == {"dataset": "three", "before": "demo-1.3"}


def test_a_run_that_has_not_trained_has_nothing_to_keep(workdir: Storage) -> None:
    workdir.write("runs/demo-1/report.html", b"of a run that failed before it trained")
    assert prepare(workdir, "one") is None
    assert prepare(workdir, "two") == ("", "one")
    assert contents(workdir).keys() == {"runs/demo-1/training.json"}
    assert workdir.read_json("runs/demo-1/training.json") == {"dataset": "two"}


@pytest.mark.parametrize(
    ("record", "problem"),
    [(None, "it is missing, and the ledger is not"), (b"[]", "it names no dataset"), (b'{"dataset": 1}', "no dataset")],
)
def test_records_of_nobody_knows_which_dataset_stay_where_they_are(
    workdir: Storage, record: bytes | None, problem: str
) -> None:
    train(workdir, "one")
    workdir.delete("runs/demo-1/training.json")
    if record is not None:
        workdir.write("runs/demo-1/training.json", record)
    before = contents(workdir)
    with pytest.raises(DamagedFile, match=rf"training\.json in .*demo-1 does not say.*{problem}; restore it"):
        prepare(workdir, "two")
    assert contents(workdir) == before


def test_wherever_the_launcher_is_killed_everything_is_kept_once(tmp_path: Path) -> None:
    unbroken = open_storage(str(tmp_path / "unbroken"))
    train(unbroken, "one")
    prepare(unbroken, "two")
    kills = 0
    for kills, storage in enumerate(
        killed_everywhere(
            lambda storage: train(storage, "one"), lambda storage: prepare(storage, "two"), str(tmp_path / "killed")
        ),
        start=1,
    ):
        prepare(storage, "two")
        assert contents(storage) == contents(unbroken), f"killed before change {kills}"
    assert kills >= 12
