"""Storage in an S3-compatible store, through boto3.

Endpoint, region and credentials come from the usual AWS settings: environment variables (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, …), a profile, or the identity of the pod or machine. Each request is tried up to eight times,
and so is each response that breaks off. ``create`` is as exclusive as the store's ``If-None-Match: *``: Amazon S3 lets
one writer succeed, OpenStack Swift has let several succeed that wrote at the same moment. A killed upload leaves parts
that no listing shows: let a lifecycle rule of the bucket abort incomplete multipart uploads, or run ``darkroom dataset
gc``.
"""

# ruff: noqa: D102 - Storage documents its methods
from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import S3TransferRetriesExceededError, TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from components.errors import ConfigError, NotFound, StorageError, without_credentials
from components.storage.base import (
    HIDDEN,
    Dated,
    Entry,
    Storage,
    Unfinished,
    check_key,
    check_prefix,
    check_range,
    join,
)
from components.storage.files import explained, whole_file

ATTEMPTS = 8
CONNECT_SECONDS = 10
READ_SECONDS = 60
# Larger objects are sent in parts of this size, several at a time (boto3 takes larger parts if 10,000 are too few).
PART_BYTES = 64 << 20

Page = list[dict[str, Any]]

_BROKEN_OFF = (HTTPClientError, IncompleteReadError, FlexibleChecksumError)
_RIGHTS = (
    "s3:GetObject, s3:PutObject, s3:DeleteObject and, on the bucket, s3:ListBucket (for dataset gc also "
    "s3:ListBucketMultipartUploads, s3:ListMultipartUploadParts and s3:AbortMultipartUpload)"
)


class S3Storage(Storage):
    """A bucket, or a folder in it.

    Objects whose keys end in ``/`` are folder markers of other tools, and are not listed.

    Args:
        bucket: The bucket's name; it must exist.
        prefix: A folder in it; empty for all of it.
        client: The boto3 client to use; a new one unless given. It must not be used on both sides of a fork.
    """

    def __init__(self, bucket: str, prefix: str = "", client: Any = None) -> None:
        self._bucket = bucket
        self._prefix = check_prefix(prefix)
        self._client = client if client is not None else connect()
        self.url = "s3://" + join(bucket, self._prefix)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        full = self._full(key)
        check_range(start, length)
        if length == 0:  # an HTTP range cannot be empty
            self.entry(key)
            return b""
        end = "" if length is None else start + length - 1
        part = {} if start == 0 and length is None else {"Range": f"bytes={start}-{end}"}
        with self._explained("read", key):
            return self._get(full, part)

    def write(self, key: str, data: bytes) -> None:
        if len(data) > PART_BYTES:
            self._send(key, BytesIO(data))
            return
        full = self._full(key)
        with self._explained("write", key):
            self._client.put_object(Bucket=self._bucket, Key=full, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        full = self._full(key)
        with self._explained("create", key):
            return self._put_new(full, data, writer=uuid.uuid4().hex)

    def upload(self, key: str, path: Path) -> None:
        with explained(f"read {path}"), path.open("rb") as file:
            self._send(key, file)

    def download(self, key: str, path: Path) -> None:
        full = self._full(key)
        with explained(f"write {path}"), whole_file(path) as file, self._explained("read", key):
            self._client.download_fileobj(self._bucket, full, file, Config=_parts())

    def entry(self, key: str) -> Entry:
        full = self._full(key)
        with self._explained("read", key):
            head = self._client.head_object(Bucket=self._bucket, Key=full)
        return Entry(key, int(head["ContentLength"]), str(head["ETag"]).strip('"'))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return (self._entry_of(listed) for listed in self._objects(check_prefix(prefix)))

    def list_all(self, prefix: str = "") -> Iterator[Entry]:
        for listed in (listed for page in self._pages(check_prefix(prefix)) for listed in page):
            if _is_object(listed["Key"]) or (listed["Key"].endswith("/") and listed["Size"]):
                yield Entry(self._key_of(listed), int(listed["Size"]), _tag_of(listed))

    def list_dated(self, prefix: str = "") -> Iterator[Dated]:
        listing = self._objects(check_prefix(prefix))
        return (Dated(self._entry_of(one).key, int(one["Size"]), one["LastModified"].timestamp()) for one in listing)

    def list_unfinished(self, prefix: str = "") -> Iterator[Unfinished]:
        folder = check_prefix(prefix)
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._explained("list the unfinished uploads of", folder):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._below(folder)):
                for upload in page.get("Uploads", ()):
                    started = upload["Initiated"].timestamp()
                    yield self._unfinished(str(upload["Key"]), str(upload["UploadId"]), started)

    def discard(self, unfinished: Unfinished) -> None:
        upload = {"Bucket": self._bucket, "Key": self._full(unfinished.key), "UploadId": unfinished.token}
        with self._explained("abort the upload of", unfinished.key), suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(**upload)

    def delete(self, key: str) -> None:
        full = self._full(key)
        with self._explained("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=full)

    def delete_tree(self, prefix: str) -> None:
        folder = check_key(check_prefix(prefix))
        for page in self._pages(folder):
            with self._explained("delete", folder):
                self._delete_all([str(listed["Key"]) for listed in page])

    def child(self, prefix: str) -> S3Storage:
        return S3Storage(self._bucket, join(self._prefix, check_prefix(prefix)), self._client)

    def _full(self, key: str) -> str:
        check_key(key)
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise StorageError(f"{key!r} cannot be a key in S3: {error.reason}; use valid Unicode") from error
        return join(self._prefix, key)

    def _get(self, full: str, part: dict[str, str]) -> bytes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # The client itself tries again after errors that come before the response's body.
                response = self._client.get_object(Bucket=self._bucket, Key=full, **part)
            except ClientError as error:
                if _code(error) == "InvalidRange":  # the range begins past the end
                    return b""
                raise
            try:
                with closing(response["Body"]) as body:
                    return bytes(body.read())
            except _BROKEN_OFF:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _put_new(self, full: str, data: bytes, writer: str) -> bool:
        """Put a new object, signed by its writer: if the response was lost, the next attempt recognises the object."""
        request = {"Bucket": self._bucket, "Key": full, "Body": data, "Metadata": {"writer": writer}}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._client.put_object(**request, IfNoneMatch="*")
                return True
            except ClientError as error:
                if _status(error) == 412:
                    break
                if _status(error) != 409 or attempt == ATTEMPTS:  # 409: another writer is writing the same key now
                    raise
        return self._is_by(writer, full)

    def _is_by(self, writer: str, full: str) -> bool:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=full)
        except ClientError as error:
            if _status(error) == 404:  # deleted meanwhile
                return False
            raise
        return bool(head.get("Metadata", {}).get("writer") == writer)

    def _send(self, key: str, file: BinaryIO) -> None:
        full = self._full(key)
        with self._explained("write", key):
            self._client.upload_fileobj(file, self._bucket, full, Config=_parts())

    def _delete_all(self, keys: Sequence[str]) -> None:
        # A request that deletes many keys is XML, which cannot contain control characters.
        for key in keys:
            if not key.isprintable():
                self._client.delete_object(Bucket=self._bucket, Key=key)
        if many := [{"Key": key} for key in keys if key.isprintable()]:
            response = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": many, "Quiet": True})
            for error in response.get("Errors", ()):
                raise StorageError(f"cannot delete {error['Key']!r} in {self.url}: {error['Code']}; allow {_RIGHTS}")

    def _objects(self, folder: str) -> Iterator[dict[str, Any]]:
        return (listed for page in self._pages(folder) for listed in page if _is_object(listed["Key"]))

    def _pages(self, folder: str) -> Iterator[Page]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._explained("list", folder):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._below(folder)):
                if page.get("Contents"):
                    yield page["Contents"]

    def _below(self, folder: str) -> str:
        prefix = join(self._prefix, folder)
        return prefix + "/" if prefix else ""

    def _unfinished(self, full: str, upload: str, started: float) -> Unfinished:
        parts = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=full, UploadId=upload)
        try:
            size = sum(int(part["Size"]) for page in parts for part in page.get("Parts", ()))
        except ClientError as error:
            if _status(error) != 404:
                raise
            size = 0  # it has become an object meanwhile
        return Unfinished(full.removeprefix(self._below("")), size, started, token=upload)

    def _entry_of(self, listed: dict[str, Any]) -> Entry:
        key = self._key_of(listed)
        try:
            check_key(key)
        except StorageError as error:
            raise StorageError(f"{self.url} holds an object that must be renamed or deleted: {error}") from error
        return Entry(key, int(listed["Size"]), _tag_of(listed))

    def _key_of(self, listed: dict[str, Any]) -> str:
        return str(listed["Key"])[len(self._prefix) + 1 if self._prefix else 0 :]

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, S3TransferRetriesExceededError) as error:
            raise self._explain(error, action, key) from error

    def _explain(self, error: Exception, action: str, key: str) -> StorageError:
        if isinstance(error, ClientError) and _status(error) == 404 and not self._lacks_bucket(error):
            return NotFound(f"{key!r} does not exist in {self.url}")
        what = f"{key!r} in {self.url}" if key else self.url
        return StorageError(f"cannot {action} {what}: {self._why(error)}")

    def _lacks_bucket(self, error: ClientError) -> bool:
        # The response to a HEAD request has no body that says what is missing.
        return _code(error) == "NoSuchBucket" or (_code(error) == "404" and not self._bucket_exists)

    @cached_property
    def _bucket_exists(self) -> bool:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            return _status(error) != 404
        except BotoCoreError:
            return True
        return True

    def _why(self, error: Exception) -> str:
        """Return what an error means and what to do about it."""
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return f"{error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the pod's identity"
        if not isinstance(error, ClientError):
            return f"{error}; check the network and AWS_ENDPOINT_URL ({self._client.meta.endpoint_url})"
        code = _code(error)
        if _status(error) == 404:
            return f"{self._client.meta.endpoint_url} has no bucket {self._bucket!r}; create it or correct the name"
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            return f"{error}; renew the credentials, and check that they belong to this store"
        if _status(error) == 403:
            return f"access denied ({code}); check the credentials, and that they allow {_RIGHTS}"
        if _status(error) == 301 or code == "AuthorizationHeaderMalformed":
            return f"{error}; set AWS_REGION to the bucket's region"
        return str(error)


def connect() -> Any:
    """Return an S3 client made from the usual AWS settings; nothing is sent yet.

    Raises:
        ConfigError: If those settings cannot be used, for example if the profile does not exist.
    """
    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    config = Config(retries=retries, connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
    try:
        # A session of its own, since boto3's shared one must not be used by several threads.
        client = boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"the AWS settings of this environment cannot be used: {error}") from error
    endpoint = client.meta.endpoint_url
    if endpoint != without_credentials(endpoint):
        given = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise ConfigError(f"AWS_ENDPOINT_URL ({endpoint}) holds credentials, which S3 does not take; set {given}")
    return client


def _parts() -> TransferConfig:
    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)


def _tag_of(listed: dict[str, Any]) -> str:
    return str(listed["ETag"]).strip('"')


def _is_object(key: str) -> bool:
    return not key.endswith("/") and f"/{HIDDEN}" not in f"/{key}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
