"""The champion: the published version of a model that a new one has to beat, and how weights are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.digests import digest, sha256
from components.errors import DataError, NotFound
from components.model.locations import COMMIT
from components.storage.base import Storage


@dataclass(frozen=True)
class Champion:
    """What ``models/<name>/champion.json`` says.

    Attributes:
        version: The published version, digest of weights and base model.
        path: Its diffusers folder below the workdir, ``models/<name>/<version>``.
        run: The run that trained it.
        step: The optimizer step that it was taken at.
        metrics: What it was measured to be; a number that could not be measured is None.
        measurement: Digest of how it was measured: metrics of other measurements cannot be compared.
        dataset_digest: The dataset that it was trained on.
        weights_sha256: Digest of its UNet's weights.
        published: When, in seconds since 1970.
    """

    version: str
    path: str
    run: str
    step: int
    metrics: Mapping[str, float | None]
    measurement: str
    dataset_digest: str
    weights_sha256: str
    published: float


def read_champion(workdir: Storage, name: str) -> Champion | None:
    """Read a model's champion.

    Returns:
        The champion; None where nothing was published yet, or where its folder is no longer whole.

    Raises:
        DataError: Where ``champion.json`` is not what publish writes.
    """
    try:
        values = workdir.read_json(_key(name))
    except NotFound:
        return None
    try:
        champion = Champion(**values)
    except TypeError as error:
        raise DataError(
            f"{_key(name)} in {workdir.url} is not what publish writes ({error}); "
            "delete it, and the next model becomes the champion"
        ) from None
    return champion if workdir.exists(f"{champion.path}/{COMMIT}") else None


def write_champion(workdir: Storage, name: str, champion: Champion) -> None:
    """Make a published version the champion."""
    workdir.write_json(_key(name), asdict(champion))


def weights_sha256(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return one digest for named weights: their names, shapes and float32 values."""
    return digest(
        {
            name: [list(array.shape), sha256(np.ascontiguousarray(array, dtype="<f4").tobytes())]
            for name, array in weights.items()
        }
    )


def _key(name: str) -> str:
    return f"models/{name}/champion.json"
