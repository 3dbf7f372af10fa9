"""Models are looked at wherever they are: in folders, stores, the hub's cache, and on the hub, here a small one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from components.errors import ConfigError, StorageError
from components.model.availability import find_model, list_files
from components.storage.base import Storage
from components.storage.open import open_storage

COMMIT = "1234567890abcdef1234567890abcdef12345678"
FILES = {"model_index.json": b'{"unet": 1}', "unet/diffusion_pytorch_model.bin": b"weights"}


@pytest.fixture
def workdir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


class Hub(BaseHTTPRequestHandler):
    """What the hub answers about one repository, someone/model."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/someone/model"):
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(200, json.dumps({"id": "someone/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif self.path == "/someone/model/resolve/main/model_index.json":
            self._answer(200, FILES["model_index.json"])
        else:
            self._answer(404, b"{}")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json", "Content-Length": str(len(body)), "ETag": '"1"',
            "X-Repo-Commit": COMMIT,
            **({"X-Error-Code": "RepoNotFound"} if status == 404 else {}),
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_is_listed_and_only_what_is_asked_for_is_read(hub: str, workdir: Storage, cache: Path) -> None:
    files = list_files("someone/model", workdir, lambda _files: False)
    assert files.names == set(FILES)
    assert files.read("model_index.json") == FILES["model_index.json"]
    assert [path.name for path in cache.rglob("*.json")] == ["model_index.json"]
    assert find_model("someone/model") == "hub"


def test_a_repository_that_does_not_exist_is_named(hub: str, workdir: Storage) -> None:
    with pytest.raises(ConfigError, match="someone/other"):
        list_files("someone/other", workdir, lambda _files: False)
    assert find_model("someone/other") == "no"


def test_a_hub_that_cannot_be_reached_is_no_wrong_name(workdir: Storage) -> None:
    with pytest.raises(StorageError, match=r"someone/model.*hub cannot be reached"):
        list_files("someone/model", workdir, lambda _files: True)
    assert find_model("someone/model") == "no"


def test_what_was_downloaded_counts_if_it_is_enough(cache: Path, workdir: Storage) -> None:
    repository = cache / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_bytes(b"{}")
    assert list_files("someone/model", workdir, lambda files: "config.json" in files.names).names == {"config.json"}
    with pytest.raises(StorageError):
        list_files("someone/model", workdir, lambda _files: False)
    assert find_model("someone/model") == "no", "not whole"


def test_a_folder_and_a_store_are_listed(tmp_path: Path, workdir: Storage) -> None:
    for storage in (open_storage(str(tmp_path / "model")), open_storage("memory://test-availability")):
        storage.write("unet/config.json", b"{}")
        files = list_files(storage.url, workdir, lambda _files: False)
        assert files.names == {"unet/config.json"}
        assert files.read("unet/config.json") == b"{}"
    with pytest.raises(ConfigError, match="nothing there"):
        list_files("memory://test-availability-empty", workdir, lambda _files: False)
    with pytest.raises(ConfigError, match="no such folder"):
        list_files(str(tmp_path / "nowhere"), workdir, lambda _files: False)
