"""Opens the storage at an address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from components.errors import ConfigError, StorageError, without_credentials
from components.storage.base import Storage, check_prefix

_EXPECTED = "a local folder, file:///folder or s3://bucket/prefix"


def open_storage(url: str) -> Storage:
    """Open a storage; nothing is created, requested or checked until it is used.

    Args:
        url: A local folder (``some/folder``, ``file:///some/folder``) or ``s3://bucket/prefix`` (endpoint, region and
            credentials come from the usual AWS settings, ``AWS_ENDPOINT_URL`` among them).

    Raises:
        ConfigError: If the URL is not the address of a storage.
    """
    scheme, separator, rest = url.partition("://")
    if url != without_credentials(url):
        given = "the environment gives them, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise ConfigError(f"{url!r} is not a storage: it holds credentials; {given}")
    if not separator or scheme == "file":
        from components.storage.local import LocalStorage

        return LocalStorage(_folder(url))
    bucket, _, prefix = rest.partition("/")
    if scheme not in SCHEMES or not bucket:
        raise ConfigError(f"{url!r} is not a storage; expected {_EXPECTED}")
    try:
        check_prefix(prefix)
    except StorageError as error:
        raise ConfigError(f"{url!r} is not a storage: {error}") from error
    return SCHEMES[scheme](bucket, prefix)


def _open_s3(bucket: str, prefix: str) -> Storage:
    from components.storage.s3 import S3Storage  # here, since boto3 takes long to import

    return S3Storage(bucket, prefix)


# For each scheme the function that opens a storage, given the bucket and the prefix of an address.
SCHEMES: dict[str, Callable[[str, str], Storage]] = {"s3": _open_s3}


def _folder(url: str) -> Path:
    path = url
    if url.startswith("file://"):
        path = unquote(url.removeprefix("file://").removeprefix("localhost"), errors="surrogateescape")
        if not path.startswith("/"):
            raise ConfigError(f"{url!r} is not an absolute file URL; write file:///some/folder, or only the path")
    if not path or "\0" in path:
        raise ConfigError(f"{url!r} is not a storage; expected {_EXPECTED}")
    try:
        return Path(path).expanduser() if path.startswith("~/") else Path(path)
    except RuntimeError as error:
        raise ConfigError(f"{url!r} is not a storage: {error}; write the whole path") from error
