"""The encoded empty prompt of a dataset, which takes the place of captions that are dropped.

``empty.npy`` has the text encoder's hidden states, ``empty.pooled.npy`` SDXL's pooled embedding. The dataset's digest
does not cover them, since the encoding decides what they are; so ``empty.json``, written last, has their digests.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dataset.format import npy
from components.digests import sha256
from components.errors import DamagedFile, DataError, NotFound
from components.storage.base import Storage

KEY = "empty.json"
_STATES, _POOLED = "empty.npy", "empty.pooled.npy"


class EmptyPrompt(NamedTuple):
    """The empty prompt: hidden states ``[L, D]`` and, only SDXL's, the pooled embedding ``[P]``; fp16."""

    states: NDArray[np.float16]
    pooled: NDArray[np.float16] | None = None


def has_empty_prompt(storage: Storage) -> bool:
    """Tell whether a dataset has its empty prompt."""
    return storage.exists(KEY)


def write_empty_prompt(storage: Storage, empty: EmptyPrompt) -> None:
    """Write a dataset's empty prompt; ``storage`` is the dataset's folder."""
    arrays = {_STATES: empty.states} if empty.pooled is None else {_POOLED: empty.pooled, _STATES: empty.states}
    files = {name: npy(array) for name, array in arrays.items()}
    for name, data in files.items():
        storage.write(name, data)
    storage.write_json(KEY, {"sha256": {name: sha256(data) for name, data in files.items()}})


def read_empty_prompt(storage: Storage) -> EmptyPrompt:
    """Read a dataset's empty prompt.

    Raises:
        DataError: If it was not written, or by a version of Darkroom that did not record its digest.
        DamagedFile: If it is not what was written.
    """
    try:
        recorded = storage.read_json(KEY)
    except NotFound:
        raise DataError(f"{storage.url} has no {KEY}, the empty prompt; run the latents step again") from None
    try:
        digests = {str(name): str(digest) for name, digest in recorded["sha256"].items()}
        arrays = {name: _array(storage, name, digest) for name, digest in digests.items()}
        return EmptyPrompt(arrays[_STATES], arrays.get(_POOLED))
    except (AttributeError, KeyError, TypeError, ValueError, NotFound) as error:
        raise DamagedFile(
            f"the empty prompt in {storage.url} is damaged ({error}); delete {KEY} and run the latents step again"
        ) from None


def _array(storage: Storage, name: str, digest: str) -> NDArray[np.float16]:
    data = storage.read(name)
    if sha256(data) != digest:
        raise ValueError(f"{name} is not what was written")
    array: NDArray[np.float16] = np.load(io.BytesIO(data), allow_pickle=False)
    return array
