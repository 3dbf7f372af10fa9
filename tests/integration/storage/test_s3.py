"""S3 when it misbehaves: a real HTTP server whose next answers a test may spoil, in front of an S3 store in memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from components.errors import ConfigError, NotFound, StorageError
from components.storage import s3
from components.storage.base import Storage
from components.storage.open import open_storage
from components.storage.s3 import ATTEMPTS, S3Storage, connect

Answer = Iterable[bytes]
Start = Callable[..., Any]
Application = Callable[[dict[str, Any], Start], Answer]
Fault = Callable[[Application, dict[str, Any], Start], Answer]


class FaultyStore:
    """A WSGI application that passes requests on to ``store``, except those that a fault is planned for."""

    def __init__(self, store: Application) -> None:
        self._store = store
        self.plan: deque[Fault] = deque()
        self.requests: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Start) -> Answer:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        fault = self.plan.popleft() if self.plan else pass_on
        return fault(self._store, environ, start)


def pass_on(store: Application, environ: dict[str, Any], start: Start) -> Answer:
    return store(environ, start)


def refuse(status: str, code: str, message: str = "") -> Fault:
    """Answer with an error; the request never reaches the store."""

    def fault(store: Application, environ: dict[str, Any], start: Start) -> Answer:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]

    return fault


def lose_the_answer(store: Application, environ: dict[str, Any], start: Start) -> Answer:
    """Do what is asked, and answer that it failed."""
    b"".join(store(environ, lambda *_: None))
    return refuse("500 Internal Server Error", "InternalError")(lambda *_: [], environ | {"CONTENT_LENGTH": "0"}, start)


def break_off(store: Application, environ: dict[str, Any], start: Start) -> Answer:
    """Promise the whole body, send half of it and hang up."""
    return [(body := b"".join(store(environ, start)))[: len(body) // 2]]


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, FaultyStore]]:
    store = FaultyStore(DomainDispatcherApplication(create_backend_app))
    serving = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://localhost:{serving.server_port}", store
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.fixture
def store(server: tuple[str, FaultyStore], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The store, which the environment leads to."""
    endpoint, store = server
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # botocore waits longer and longer before it tries again; tests do not.
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    yield store
    assert not store.plan, "a fault was planned that no request met"


@pytest.fixture
def client(store: FaultyStore) -> Any:
    client = connect()
    client.create_bucket(Bucket="bucket")
    return client


@pytest.fixture
def storage(client: Any, store: FaultyStore, tmp_path: Path) -> S3Storage:
    storage = S3Storage("bucket", tmp_path.name, client)
    storage.write("key", b"0123456789" * 1000)
    store.requests.clear()
    return storage


ERROR_500 = refuse("500 Internal Server Error", "InternalError", "We encountered an internal error.")
SLOW_DOWN = refuse("503 Slow Down", "SlowDown")


# Each method that talks to the store; ``here`` is a local folder that holds a file "source".
CALLS: dict[str, Callable[[Storage, Path], object]] = {
    "read": lambda storage, here: storage.read("key"),
    "read a part": lambda storage, here: storage.read("key", 2, 3),
    "write": lambda storage, here: storage.write("key", b"data"),
    "create": lambda storage, here: storage.create("new", b"data"),
    "upload": lambda storage, here: storage.upload("key", here / "source"),
    "download": lambda storage, here: storage.download("key", here / "copy"),
    "entry": lambda storage, here: storage.entry("key"),
    "exists": lambda storage, here: storage.exists("key"),
    "list": lambda storage, here: list(storage.list()),
    "delete": lambda storage, here: storage.delete("key"),
    "delete_tree": lambda storage, here: storage.delete_tree("folder"),
    "append": lambda storage, here: storage.append("key", b"data"),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(b"data")
    return tmp_path


# Faults that pass.


def test_two_errors_and_then_success(
    store: FaultyStore, storage: S3Storage, here: Path, subtests: pytest.Subtests
) -> None:
    for name, call in CALLS.items():
        with subtests.test(name):
            store.plan.extend([ERROR_500, SLOW_DOWN])
            call(storage, here)
            assert not store.plan


def test_an_answer_that_breaks_off_is_asked_for_again(store: FaultyStore, storage: S3Storage, tmp_path: Path) -> None:
    store.plan.extend([break_off] * (ATTEMPTS - 1))
    assert storage.read("key") == b"0123456789" * 1000
    store.plan.extend([break_off] * (ATTEMPTS - 1))
    assert storage.read("key", 5, 100) == b"5678901234" * 10
    store.plan.extend([pass_on, break_off])  # a download asks for the size first
    storage.download("key", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123456789" * 1000


def test_a_creator_whose_answer_was_lost_knows_its_own_object(store: FaultyStore, storage: S3Storage) -> None:
    store.plan.append(lose_the_answer)
    assert storage.create("lock", b"mine")
    store.plan.append(lose_the_answer)
    assert not storage.create("lock", b"mine")
    assert storage.read("lock") == b"mine"


def test_a_creator_tries_again_while_another_is_at_it(store: FaultyStore, storage: S3Storage) -> None:
    store.plan.extend([refuse("409 Conflict", "ConditionalRequestConflict")] * 2)
    assert storage.create("lock", b"mine")
    assert store.requests == ["PUT /bucket/" + storage.url.removeprefix("s3://bucket/") + "/lock"] * 3


# Faults that stay.


@pytest.mark.parametrize("name", ["read", "write", "list", "download"])
def test_a_store_that_stays_broken_is_told(store: FaultyStore, storage: S3Storage, here: Path, name: str) -> None:
    store.plan.extend([ERROR_500] * ATTEMPTS)
    with pytest.raises(StorageError, match=r"Internal ?(Server )?Error") as caught:
        CALLS[name](storage, here)
    assert storage.url in str(caught.value)
    assert caught.value.__cause__ is not None
    assert not isinstance(caught.value, NotFound)
    assert len(store.requests) == ATTEMPTS
    assert not (here / "copy").exists()


def test_an_object_that_always_breaks_off_is_told(store: FaultyStore, storage: S3Storage) -> None:
    store.plan.extend([break_off] * ATTEMPTS)
    with pytest.raises(StorageError, match="cannot read 'key' in s3://bucket/"):
        storage.read("key")


def test_a_missing_bucket_is_not_a_missing_object(client: Any, here: Path, subtests: pytest.Subtests) -> None:
    for name, call in CALLS.items():
        with subtests.test(name):
            expected = r"s3://elsewhere/prefix: http://localhost:\d+ has no bucket 'elsewhere'; create it"
            with pytest.raises(StorageError, match=expected) as caught:
                call(S3Storage("elsewhere", "prefix", client), here)
            assert not isinstance(caught.value, NotFound)


def test_denied_access_names_the_rights(
    store: FaultyStore, storage: S3Storage, here: Path, subtests: pytest.Subtests
) -> None:
    for name, call in CALLS.items():
        with subtests.test(name):
            store.plan.append(refuse("403 Forbidden", "AccessDenied"))
            with pytest.raises(StorageError, match=r"access denied .*allow s3:GetObject, ") as caught:
                call(storage, here)
            assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        ("403 Forbidden", "InvalidAccessKeyId", "renew the credentials"),
        ("400 Bad Request", "ExpiredToken", "renew the credentials"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "set AWS_REGION"),
        ("400 Bad Request", "KeyTooLongError", "KeyTooLongError"),
    ],
)
def test_refusals_say_what_to_do(store: FaultyStore, storage: S3Storage, status: str, code: str, advice: str) -> None:
    store.plan.append(refuse(status, code))
    with pytest.raises(StorageError, match=advice):
        storage.write("key", b"data")


def test_objects_that_cannot_be_deleted_are_named(store: FaultyStore, storage: S3Storage) -> None:
    def locked(application: Application, environ: dict[str, Any], start: Start) -> Answer:
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start("200 OK", [("Content-Type", "application/xml")])
        return [b"<DeleteResult><Error><Key>a/b</Key><Code>AccessDenied</Code></Error></DeleteResult>"]

    storage.write("a/b", b"data")
    store.plan.extend([pass_on, locked])
    with pytest.raises(StorageError, match=r"cannot delete 'a/b' .*AccessDenied"):
        storage.delete_tree("a")


@pytest.mark.usefixtures("store")
def test_missing_credentials_are_told(here: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage = open_storage("s3://bucket")
    for name, call in CALLS.items():
        with subtests.test(name), pytest.raises(StorageError, match=r"[Cc]redentials; set AWS_ACCESS_KEY_ID"):
            call(storage, here)


@pytest.mark.usefixtures("store")
def test_a_store_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"check the network and AWS_ENDPOINT_URL \(http://127\.0\.0\.1:1\)"):
        open_storage("s3://bucket").exists("key")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_ENDPOINT_URL", "localhost:9000")])
def test_settings_that_cannot_be_used_fail_at_once(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=value):
        open_storage("s3://bucket")


@pytest.mark.usefixtures("store")
def test_a_bucket_name_that_cannot_be_is_told() -> None:
    with pytest.raises(StorageError, match="Invalid bucket name"):
        open_storage("s3://not a bucket").read("key")


# What other tools leave in a bucket, and large things.


def test_what_other_tools_leave_in_a_bucket(client: Any, storage: S3Storage) -> None:
    for name in ("folder/", "folder/file", ".darkroom-tmp-1", "folder/.darkroom-tmp-2"):
        client.put_object(Bucket="bucket", Key=f"{storage.url.removeprefix('s3://bucket/')}/{name}", Body=b"")
    assert [entry.key for entry in storage.list()] == ["folder/file", "key"]
    storage.delete_tree("folder")
    assert [entry.key for entry in storage.list()] == ["key"]


@pytest.mark.parametrize("name", ["a//b", "../b", "a/./b"])
def test_an_object_that_no_key_reaches_stops_a_listing(client: Any, storage: S3Storage, name: str) -> None:
    client.put_object(Bucket="bucket", Key=f"{storage.url.removeprefix('s3://bucket/')}/odd/{name}", Body=b"")
    with pytest.raises(StorageError, match="holds an object that must be renamed or deleted"):
        list(storage.list("odd"))


def test_a_listing_goes_on_over_pages(store: FaultyStore, storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{folder}/{number}" for folder in "ab" for number in range(10)]
    for key in keys:
        storage.write(key, b"")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")  # a page of S3 holds 1,000
    store.requests.clear()
    assert [entry.key for entry in storage.list()] == [*keys, "key"]
    assert store.requests == ["GET /bucket"] * 7
    storage.delete_tree("a")
    assert [entry.key for entry in storage.list()] == [*keys[10:], "key"]


def test_a_whole_bucket_is_a_storage(store: FaultyStore, client: Any) -> None:
    client.create_bucket(Bucket="whole")
    storage = open_storage("s3://whole")
    storage.write("a/b", b"data")
    client.put_object(Bucket="whole", Key="c", Body=b"")
    assert [entry.key for entry in storage.list()] == ["a/b", "c"]
    assert storage.child("a").url == "s3://whole/a"
    client.put_object(Bucket="whole", Key="/c", Body=b"")  # is not "c"
    with pytest.raises(StorageError, match="must be renamed"):
        list(storage.list())


def test_large_objects_travel_in_parts(storage: S3Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # the smallest that S3 takes
    data = os.urandom(12 << 20)
    (tmp_path / "source").write_bytes(data)
    storage.upload("uploaded", tmp_path / "source")
    storage.write("written", data)
    for key in ("uploaded", "written"):
        assert storage.entry(key).modified.endswith("-3")  # so S3 says: of three parts
        assert storage.read(key) == data
    storage.download("uploaded", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_a_key_that_is_not_unicode_is_told(storage: S3Storage) -> None:
    with pytest.raises(StorageError, match="valid Unicode"):
        storage.write("caf\udce9", b"")
