"""The champion: the published version of a model that a new one has to beat; and the digest of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.digests import digest, sha256
from components.errors import DataError, NotFound
from components.model.manifest import COMMIT
from components.model.metric_results import MetricResult, parse_metrics, plain_metrics
from components.storage.base import Storage

# The format of champion.json; it goes up whenever a key gets another name or meaning.
FORMAT = 2


@dataclass(frozen=True)
class Champion:
    """What ``models/<name>/champion.json`` says.

    Attributes:
        version: The published version, digest of weights and base model.
        path: Its diffusers folder below the workdir, ``models/<name>/<version>``.
        run: The run that trained it.
        step: The optimizer step that it was taken at.
        metrics: What was measured of it, by name.
        measurement: Digest of how it was measured: metrics of other measurements cannot be compared.
        dataset_digest: The dataset that it was trained on.
        weights_sha256: Digest of its UNet's weights.
        published: When, in seconds since 1970.
    """

    version: str
    path: str
    run: str
    step: int
    metrics: Mapping[str, MetricResult]
    measurement: str
    dataset_digest: str
    weights_sha256: str
    published: float


def read_champion(workdir: Storage, name: str) -> Champion | None:
    """Read a model's champion.

    Returns:
        The champion; None if nothing was published yet, or if its folder is no longer whole.

    Raises:
        DataError: If ``champion.json`` is not what publish writes, or has another format.
    """
    try:
        values = workdir.read_json(_key(name))
    except NotFound:
        return None
    try:
        champion = parse_champion(values)
    except ValueError as error:
        run = values.get("run") if isinstance(values, dict) else None
        again = f", or run evaluate and publish of run {run} again to keep it" if isinstance(run, str) else ""
        raise DataError(
            f"{_key(name)} in {workdir.url} cannot be read: {error}; "
            f"delete it, and the next model becomes the champion{again}"
        ) from None
    return champion if workdir.exists(f"{champion.path}/{COMMIT}") else None


def write_champion(workdir: Storage, name: str, champion: Champion) -> None:
    """Make a published version the champion."""
    workdir.write_json(_key(name), plain_champion(champion))


def parse_champion(values: Any) -> Champion:
    """Return the champion that `plain_champion` wrote down.

    Raises:
        ValueError: If the values are something else, or have another format.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, expected an object")
    rest = dict(values)
    version = rest.pop("format", 1)
    if version != FORMAT:
        raise ValueError(f"it has format {version}, this version of Darkroom reads format {FORMAT}")
    try:
        return Champion(**{**rest, "metrics": parse_metrics(rest.get("metrics"))})
    except TypeError as error:
        raise ValueError(str(error)) from None


def plain_champion(champion: Champion) -> dict[str, Any]:
    """Return a champion as plain JSON."""
    return {"format": FORMAT, **vars(champion), "metrics": plain_metrics(champion.metrics)}


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
