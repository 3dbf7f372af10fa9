"""Stores that tests share: a real S3 store, and a proxy in front of it that makes chosen requests fail."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.storage.s3 import S3Storage, connect
from tests.stores.proxy import FlakyProxy

CLUSTER = Path(__file__).with_name("swift_cluster.py")
BUCKET = "darkroom"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test:tester",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an OpenStack Swift that lives as long as the tests do, with a bucket in it."""
    folder = tmp_path_factory.mktemp("swift")
    if reason := _why_not(folder):
        pytest.skip(reason)
    command = [sys.executable, "-P", "-W", "ignore", str(CLUSTER), str(folder)]
    pipe = subprocess.PIPE
    with (
        (folder / "stderr").open("wb") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        port = process.stdout.readline().decode().strip()
        assert port, (folder / "stderr").read_text()
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()


@pytest.fixture(scope="session")
def s3_client(swift: str) -> Iterator[Any]:
    """A client of the real S3 store, with a bucket; it is shared, since making one takes longer than most tests."""
    with pytest.MonkeyPatch.context() as environment:
        lead_to(environment, swift)
        client = connect()
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


@pytest.fixture
def s3(swift: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """An empty folder in a real S3 store that the environment points to."""
    lead_to(monkeypatch, swift)
    return S3Storage(BUCKET, uuid.uuid4().hex, s3_client)


@pytest.fixture
def flaky(swift: str, s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A proxy before the real S3 store that the environment points to; clients try again without waiting."""
    with FlakyProxy(swift) as proxy:
        lead_to(monkeypatch, proxy.endpoint)
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
        yield proxy
    assert not proxy.plan, "a fault was planned that no request met"


def lead_to(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the environment point to a store."""
    for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": endpoint}.items():
        environment.setenv(name, value)


def _why_not(folder: Path) -> str:
    """Return why Swift cannot run here; an empty text if it can."""
    if importlib.util.find_spec("swift") is None:
        return "OpenStack Swift is not installed (pip install swift)"
    try:
        os.setxattr(folder, "user.swift.metadata", b"{}")
    except OSError as error:
        return f"Swift keeps metadata in extended attributes, which {folder} does not take ({error.strerror})"
    return ""
