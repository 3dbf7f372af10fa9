"""A launcher, and the API server that it talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.storage.open import open_storage
from tests.cluster.api_server import ApiServer
from tests.cluster.harness import Harness


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    server = ApiServer()
    yield Harness(server, open_storage(str(tmp_path)))
    server.stop()
