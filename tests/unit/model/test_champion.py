"""The champion is read as it was written, and weights are told apart by all that makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from components.errors import DataError
from components.model.champion import Champion, read_champion, weights_sha256, write_champion
from components.model.manifest import COMMIT
from components.model.metric_results import MetricResult
from components.storage.base import Storage
from components.storage.open import open_storage

METRIC = MetricResult("X", "what it is", "share", "higher", "how", 8, "not run", None, None, "real images", "why")
ONE = Champion("v1", "models/digits/v1", "digits-1", 400, {"x": METRIC}, "how", "dataset", "weights", 1.5)


@pytest.fixture
def workdir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_a_champion_is_read_as_it_was_written_while_its_folder_is_whole(workdir: Storage) -> None:
    assert read_champion(workdir, "digits") is None
    write_champion(workdir, "digits", ONE)
    assert read_champion(workdir, "digits") is None, "its folder is not committed"
    workdir.write(f"{ONE.path}/{COMMIT}", b"")
    assert read_champion(workdir, "digits") == ONE
    assert read_champion(workdir, "others") is None


def test_a_file_that_holds_no_champion_is_named_and_the_run_that_would_be_it_again(workdir: Storage) -> None:
    key = "models/digits/champion.json"
    write_champion(workdir, "digits", ONE)
    values = workdir.read_json(key)
    del values["format"]
    workdir.write_json(key, values)
    with pytest.raises(DataError, match=r"it has format 1, .*run evaluate and publish of run digits-1 again"):
        read_champion(workdir, "digits")
    workdir.write(key, b"[1]")
    with pytest.raises(DataError, match="it holds list, expected an object; delete it, and the next model becomes"):
        read_champion(workdir, "digits")


@pytest.mark.parametrize("change", [{"more": 1}, {"step": "-"}])
def test_a_champion_that_is_none_is_named_with_what_is_wrong(workdir: Storage, change: dict[str, Any]) -> None:
    write_champion(workdir, "digits", ONE)
    values = workdir.read_json("models/digits/champion.json") | change
    workdir.write_json("models/digits/champion.json", {name: value for name, value in values.items() if value != "-"})
    with pytest.raises(DataError, match=rf"models/digits/champion\.json.*{next(iter(change))}"):
        read_champion(workdir, "digits")


def weights() -> dict[str, NDArray[Any]]:
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def test_equal_weights_have_one_digest_however_they_lie_in_memory() -> None:
    whole = weights()
    wide = {name: array.astype(np.float64) for name, array in whole.items()}
    across = {**whole, "a": np.asfortranarray(whole["a"])}
    big = {name: array.astype(">f4") for name, array in whole.items()}
    turned = dict(reversed(whole.items()))
    assert len({weights_sha256(one) for one in (whole, wide, across, big, turned)}) == 1


def test_weights_of_other_names_shapes_or_values_have_another_digest() -> None:
    whole = weights()
    others = [
        {"a": whole["a"]},
        {"a": whole["a"], "c": whole["b"]},
        {**whole, "a": whole["a"].reshape(3, 2)},
        {**whole, "b": np.array([1, 1 + 2**-23], np.float32)},
    ]
    assert len({weights_sha256(one) for one in (whole, *others)}) == 5
