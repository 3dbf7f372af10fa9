"""What holds for all tests: one thread for each process, no way to a model hub, and stores of their own."""

from __future__ import annotations

import os
import signal

pytest_plugins = ("tests.stores.fixtures",)


def pytest_configure() -> None:
    # Several tests and several ranks run side by side; threads beyond the cores would fight for them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # What starts the tests may ignore signals, as nohup and a shell's background jobs do, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
