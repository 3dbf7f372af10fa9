"""What holds for all tests: one thread for each process, no way to a model hub, and stores of their own."""

from __future__ import annotations

import os

pytest_plugins = ("tests.stores.fixtures",)


def pytest_configure() -> None:
    # Several tests and several ranks run side by side; threads beyond the cores would fight for them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
