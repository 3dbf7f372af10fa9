"""The empty prompt is what was encoded, or an error: a flipped bit once trained another model on the same dataset."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest

from components.dataset.empty_prompt import EmptyPrompt, has_empty_prompt, read_empty_prompt, write_empty_prompt
from components.digests import sha256
from components.errors import DamagedFile, DataError
from components.storage.base import Storage
from components.storage.open import open_storage

STATES = np.arange(6, dtype=np.float16).reshape(2, 3)
POOLED = np.ones(4, np.float16)


@pytest.fixture
def dataset(request: pytest.FixtureRequest) -> Storage:
    return open_storage(f"memory://{request.node.name}")


@pytest.mark.parametrize("pooled", [None, POOLED])
def test_it_is_read_as_it_was_written(dataset: Storage, pooled: np.ndarray | None) -> None:
    assert not has_empty_prompt(dataset)
    with pytest.raises(DataError, match=r"no empty\.json.*run the latents step again"):
        read_empty_prompt(dataset)
    write_empty_prompt(dataset, EmptyPrompt(STATES, pooled))
    assert has_empty_prompt(dataset)
    empty = read_empty_prompt(dataset)
    np.testing.assert_array_equal(empty.states, STATES)
    np.testing.assert_array_equal(empty.pooled, pooled)


def test_every_flipped_bit_is_an_error_that_says_what_to_do(dataset: Storage) -> None:
    write_empty_prompt(dataset, EmptyPrompt(STATES, POOLED))
    for key in ("empty.npy", "empty.pooled.npy"):
        whole = dataset.read(key)
        for position in range(len(whole)):
            flipped = bytes([whole[position] ^ 1 << position % 8])
            dataset.write(key, whole[:position] + flipped + whole[position + 1 :])
            with pytest.raises(DamagedFile, match=rf"{key} is not what .*delete empty\.json and run"):
                read_empty_prompt(dataset)
        dataset.write(key, whole)
    dataset.delete("empty.pooled.npy")
    with pytest.raises(DamagedFile, match=r"empty\.pooled\.npy"):
        read_empty_prompt(dataset)


class Planted:
    """What a pickle can do when it is opened."""

    def __reduce__(self) -> tuple[type[Exception], tuple[str]]:
        return Exception, ("opened",)


def test_no_pickle_is_opened_whatever_digest_it_has(dataset: Storage) -> None:
    write_empty_prompt(dataset, EmptyPrompt(STATES, None))
    objects = io.BytesIO()
    np.save(objects, np.array([Planted()], dtype=object), allow_pickle=True)
    for data in (objects.getvalue(), pickle.dumps(Planted())):
        dataset.write("empty.npy", data)
        dataset.write_json("empty.json", {"sha256": {"empty.npy": sha256(data)}})
        with pytest.raises(DamagedFile, match=r"pickle.*run the latents step again"):
            read_empty_prompt(dataset)
