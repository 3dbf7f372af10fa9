"""Which storage an address names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from components.errors import ConfigError, StorageError
from components.storage.base import Storage, check_prefix

_PLACES = "a local folder, file:///folder, s3://bucket/prefix, or memory://name for tests"


def open_storage(url: str) -> Storage:
    """Open a place; nothing is made, asked or checked until it is used.

    Args:
        url: A local folder (``some/folder``, ``file:///some/folder``), ``s3://bucket/prefix`` (endpoint, region and
            credentials come from the usual AWS settings, ``AWS_ENDPOINT_URL`` among them), or ``memory://name``.

    Raises:
        ConfigError: Where the URL names no such place.
    """
    # Each backend is imported where it is used: they import this module, and boto3 takes long.
    scheme, colon, rest = url.partition("://")
    if not colon or scheme == "file":
        from components.storage.local import LocalStorage

        return LocalStorage(_folder(url))
    place, _, prefix = rest.partition("/")
    if scheme not in ("s3", "memory") or not place:
        raise ConfigError(f"{url!r} is not a place; expected {_PLACES}")
    try:
        check_prefix(prefix)
    except StorageError as error:
        raise ConfigError(f"{url!r} is not a place: {error}") from error
    if scheme == "memory":
        from components.storage.memory import MemoryStorage

        return MemoryStorage(place, prefix)
    from components.storage.s3 import S3Storage

    return S3Storage(place, prefix)


def _folder(url: str) -> Path:
    path = url
    if url.startswith("file://"):
        path = unquote(url.removeprefix("file://").removeprefix("localhost"), errors="surrogateescape")
        if not path.startswith("/"):
            raise ConfigError(f"{url!r} is not an absolute file URL; write file:///some/folder, or only the path")
    if not path or "\0" in path:
        raise ConfigError(f"{url!r} is not a place; expected {_PLACES}")
    try:
        return Path(path).expanduser() if path.startswith("~/") else Path(path)
    except RuntimeError as error:
        raise ConfigError(f"{url!r} is not a place: {error}; write the whole path") from error
