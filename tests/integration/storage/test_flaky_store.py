"""A real S3 store behind a network that fails: whatever passes is tried again, and what stays is named."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.errors import NotFound, StorageError
from components.storage import s3 as s3_module
from components.storage.base import Storage
from components.storage.s3 import ATTEMPTS, S3Storage, connect
from tests.stores.fixtures import BUCKET
from tests.stores.proxy import (
    ERROR_500,
    SLOW_DOWN,
    Fault,
    FlakyProxy,
    cut_short,
    lose_the_answer,
    pass_on,
    reset,
    stall,
    stall_midway,
)

DATA = b"0123456789" * 1000
CALLS: dict[str, Callable[[Storage, Path], object]] = {
    "read": lambda storage, here: storage.read("key"),
    "read a part": lambda storage, here: storage.read("key", 2, 300),
    "write": lambda storage, here: storage.write("key", DATA),
    "create": lambda storage, here: storage.create("new", b"data"),
    "upload": lambda storage, here: storage.upload("key", here / "source"),
    "download": lambda storage, here: storage.download("key", here / "copy"),
    "entry": lambda storage, here: storage.entry("key"),
    "list": lambda storage, here: list(storage.list()),
    "delete": lambda storage, here: storage.delete("other"),
    "delete_tree": lambda storage, here: storage.delete_tree("folder"),
}
FAULTS = {
    "an error": ERROR_500,
    "too much at once": SLOW_DOWN,
    "a reset": reset,
    "a lost answer": lose_the_answer,
    "silence": stall,
}
# A body can only be broken off where there is one.
OF_BODIES = {"a short body": cut_short, "a body that stalls": stall_midway}
READS = ("read", "read a part", "download")


@pytest.fixture
def storage(flaky: FlakyProxy, s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """A place with one object, which only the network keeps from being read; a stalled read times out at once."""
    monkeypatch.setattr(s3_module, "READ_SECONDS", 0.5)
    s3.write("key", DATA)
    return S3Storage(BUCKET, s3.url.removeprefix(f"s3://{BUCKET}/"), connect())


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path


@pytest.mark.parametrize("name", CALLS)
def test_what_passes_is_tried_again(
    flaky: FlakyProxy, storage: S3Storage, here: Path, name: str, subtests: pytest.Subtests
) -> None:
    expected = CALLS[name](storage, here)
    for fault, spoil in {**FAULTS, **(OF_BODIES if name in READS else {})}.items():
        with subtests.test(fault):
            storage.delete("new")
            flaky.plan.extend([pass_on, spoil] if name == "download" and fault in OF_BODIES else [spoil])
            assert CALLS[name](storage, here) == expected
            assert not flaky.plan
            assert storage.read("key") == DATA
            if name == "download":
                assert (here / "copy").read_bytes() == DATA


@pytest.mark.parametrize("fault", [ERROR_500, SLOW_DOWN, reset, cut_short], ids=["500", "503", "reset", "short"])
def test_what_stays_is_named(flaky: FlakyProxy, storage: S3Storage, here: Path, fault: Fault) -> None:
    flaky.fault_of = lambda *_: fault
    with pytest.raises(StorageError, match="cannot read 'key' in s3://darkroom/") as caught:
        storage.read("key")
    assert not isinstance(caught.value, NotFound)
    assert len(flaky.requests) == ATTEMPTS, "each of our attempts must not be one of many of the client's"
    with pytest.raises(StorageError):
        storage.download("key", here / "copy")
    assert sorted(path.name for path in here.iterdir()) == ["source"], "no half of a download stays"


def test_an_upload_that_fails_midway_leaves_no_parts(
    flaky: FlakyProxy, storage: S3Storage, here: Path, s3_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    (here / "large").write_bytes(os.urandom(11 << 20))
    flaky.fault_of = lambda request, _: ERROR_500 if "partNumber=3" in request else pass_on
    with pytest.raises(StorageError, match="cannot write 'large'"):
        storage.upload("large", here / "large")
    assert not storage.exists("large")
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=BUCKET)

    flaky.fault_of = lambda _, number: reset if number % 3 == 0 else pass_on
    storage.upload("large", here / "large")
    storage.download("large", here / "copy")
    assert (here / "copy").read_bytes() == (here / "large").read_bytes()


def test_uploads_that_a_killed_writer_left_are_told_and_discarded(s3: S3Storage, s3_client: Any) -> None:
    began = time.time()
    full = f"{s3.url.removeprefix(f's3://{BUCKET}/')}/shards/large"
    upload = s3_client.create_multipart_upload(Bucket=BUCKET, Key=full)["UploadId"]
    part = {"Bucket": BUCKET, "Key": full, "UploadId": upload, "PartNumber": 1}
    s3_client.upload_part(**part, Body=bytes(5 << 20))
    assert list(s3.list()) == []
    (found,) = s3.list_unfinished()
    assert (found.key, found.size) == ("shards/large", 5 << 20)
    assert began - 2 <= found.written <= time.time() + 2
    assert list(s3.list_unfinished("shards")) == [found]
    assert list(s3.list_unfinished("other")) == []
    for _ in range(2):
        s3.discard(found)
        assert list(s3.list_unfinished()) == []
