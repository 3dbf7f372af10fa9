"""What holds for all tests: one thread for each process, limits of time, no way to a model hub, stores of their own."""

from __future__ import annotations

import faulthandler
import inspect
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from components.storage.open import SCHEMES
from tests.stores.memory import MemoryStorage

pytest_plugins = ("tests.stores.fixtures",)

# In seconds; what has no such mark gets the limit of pyproject.toml, and a test may have a mark of its own.
LIMITS = {"proof": 3600, "slow": 900}
LAST_SECONDS = 30
_stderr = pytest.StashKey[int]()
_state = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # Several tests and several ranks run side by side; threads beyond the cores would fight for them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Runs of tests must not be what a person's next command takes for the last run.
    os.environ["XDG_STATE_HOME"] = config.stash[_state] = tempfile.mkdtemp(prefix="darkroom-tests-state-")
    SCHEMES["memory"] = MemoryStorage
    # What starts the tests may ignore signals, as nohup and a shell's background jobs do, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # While a test runs, standard error is captured, and would be lost with the process.
    config.stash[_stderr] = os.dup(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_state], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marks = [name for name in LIMITS if item.get_closest_marker(name) is not None]
        if marks and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMITS[marks[0]]))


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
    """End the process some time after a test's limit.

    At the limit the test fails by an exception in the main thread; that does not come through a call that waits in C,
    such as a collective of ranks, and what is then cleaned up may wait for ever, too.
    """
    faulthandler.dump_traceback_later(settings.timeout + LAST_SECONDS, exit=True, file=item.config.stash[_stderr])
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_cancel_timer() -> Generator[None, Any, Any]:
    """Let the process live on: the test has ended."""
    faulthandler.cancel_dump_traceback_later()
    return (yield)


@pytest.fixture(scope="session")
def quick_compiler() -> Generator[None]:
    """Let Kubeflow's compiler ask for its callers' names without the lines of their sources.

    It asks at each setting of a task, and ``inspect`` then looks through all modules for each of a test's many callers:
    in a process that has imported torch, a compilation takes seconds instead of a tenth.
    """
    from kfp.dsl import pipeline_task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=partial(inspect.stack, 0)))
        yield
