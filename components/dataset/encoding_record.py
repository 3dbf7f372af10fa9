"""What a dataset's encoding key was made from: ``datasets/<encoding-key>/encoding.json``, of the latents step."""

from __future__ import annotations

from typing import Any

from components.errors import DataError, NotFound
from components.storage.base import Storage

_ENCODING = "encoding.json"


def write_encoding(storage: Storage, encoding: dict[str, Any]) -> None:
    """Write what a dataset's encoding key was made from."""
    storage.write_json(_ENCODING, encoding)


def has_encoding(storage: Storage) -> bool:
    """Tell whether it is written what a dataset's encoding key was made from."""
    return storage.exists(_ENCODING)


def read_encoding(storage: Storage) -> dict[str, Any]:
    """Read what a dataset's encoding key was made from.

    Raises:
        DataError: If the latents step has not run.
        DamagedFile: If it is not what was written.
    """
    try:
        return dict(storage.read_json(_ENCODING, must_have_checksum=True))
    except NotFound:
        raise DataError(f"{storage.url} has no {_ENCODING}; run the latents step first") from None
