"""TensorBoard, W&B and MLflow beside ``metrics.jsonl``, when asked for; none of them can hold up or stop training.

Each tracker lives in a process of its own (`components.train.metrics.tracker_process`) that is told lines of JSON
through a pipe. A library that hangs, crashes, waits for a server or changes global state does so there. A tracker that
does not keep up or has ended is dropped, and training goes on. When training ends, however it does, so does the pipe;
the tracker then
brings out what it still has and ends by itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from components.errors import ConfigError
from components.storage.base import Storage

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
# What is written at once to a pipe that has room for it arrives whole (POSIX: PIPE_BUF is 4,096 bytes on Linux).
MOST_BYTES = 4096
_PIPE_BYTES = 1 << 20  # some thousand lines: what comes while a library starts, or a server is away
_LAST_WORDS_SECONDS = 1.0
# A tracker is no rank: it must not think that it should meet the others, and needs no device.
_OF_RANKS = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
Tell = Callable[..., None]


def check_usable(trackers: Sequence[str], workdir: Storage, environment: Mapping[str, str]) -> None:
    """Check that some trackers have what they need.

    Raises:
        ConfigError: Where a package is missing, or a place to log to; it says what to do.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None or importlib.util.find_spec("accelerate") is None:
            raise ConfigError(
                f"trackers asks for {name}, which is not installed here; run pip install accelerate {PACKAGES[name]}, "
                "or take it out of train.metrics.trackers"
            )
    if "mlflow" in trackers and workdir.local_path() is None and not environment.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            f"trackers asks for mlflow, which cannot keep its runs in {workdir.url}; set MLFLOW_TRACKING_URI in the "
            "environment to a server's URL, or take it out of train.metrics.trackers"
        )


class Trackers:
    """The trackers of a run, each at the other end of a pipe.

    Args:
        names: Which: ``tensorboard``, ``wandb``, ``mlflow``.
        about: What each is told of the run when it starts; see `components.train.metrics.tracker_process.About`.
        tell: Told as events that a tracker has started, and, once for each, that it has to be given up.
    """

    def __init__(self, names: Sequence[str], about: Mapping[str, Any], tell: Tell) -> None:
        self._tell = tell
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            try:
                self._processes[name] = _start(name, about)
            except OSError as error:
                tell("tracker-dropped", tracker=name, why=f"it could not be started: {error}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers of an optimizer step."""
        self._pass_on({"step": step, "values": dict(values)})

    def images(self, step: int, sheet: str, size: tuple[int, int]) -> None:
        """Tell of a row of images ``[H, n·W, 3]`` under a key of the run's folder; ``size`` is that of one: (H, W)."""
        self._pass_on({"step": step, "sheet": sheet, "size": size})

    def save(self) -> None:
        """Ask that what is only on this machine is brought to where the run is kept."""
        self._pass_on({"save": True})

    def close(self, patience: float) -> None:
        """Say that training has ended, and wait some seconds for the trackers; one that takes longer goes on alone."""
        for process in self._processes.values():
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        deadline = time.monotonic() + patience
        for name, process in list(self._processes.items()):
            code = _wait(process, max(deadline - time.monotonic(), 0.0))
            self._hear(name, process)
            if code is None:
                self._tell("tracker-left", tracker=name, why=f"it did not end within {patience:g} s; it goes on alone")
            elif code != 0:
                self._drop(name, process, f"it ended with exit code {code}")
            else:
                self._processes.pop(name, None)
                _pipe(process.stdout).close()

    def _pass_on(self, what: Mapping[str, Any]) -> None:
        line = json.dumps(what).encode() + b"\n"
        assert len(line) <= MOST_BYTES, "a longer line could arrive in halves"
        for name, process in list(self._processes.items()):
            self._hear(name, process)
            if name not in self._processes:
                continue
            try:
                os.write(_pipe(process.stdin).fileno(), line)
            except BlockingIOError:
                self._drop(name, process, "it does not keep up")
            except OSError:
                code = _wait(process, _LAST_WORDS_SECONDS)
                self._hear(name, process)
                self._drop(name, process, f"it ended with exit code {code}")

    def _hear(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Tell what a tracker says of itself; one that gives up says why."""
        try:
            said = os.read(_pipe(process.stdout).fileno(), 16 * MOST_BYTES)
        except BlockingIOError:
            return
        for line in said.splitlines():
            event = json.loads(line)
            if "problem" in event:
                self._drop(name, process, event["problem"])
            else:
                self._tell("tracking", tracker=name, **event)

    def _drop(self, name: str, process: subprocess.Popen[bytes], why: str) -> None:
        if self._processes.pop(name, None) is None:
            return
        process.kill()
        _wait(process, _LAST_WORDS_SECONDS)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()
        self._tell("tracker-dropped", tracker=name, why=why)


def _start(name: str, about: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key not in _OF_RANKS}
    environment.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    # A session of its own: whoever ends a rank with all that it started leaves the tracker its last seconds.
    process = subprocess.Popen(  # noqa: S603 - no shell
        [sys.executable, "-m", "components.train.metrics.tracker_process", name, json.dumps(about)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        pipesize=_PIPE_BYTES,
        start_new_session=True,
    )
    for pipe in (process.stdin, process.stdout):
        os.set_blocking(_pipe(pipe).fileno(), False)
    return process


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit code of a process, or None where it does not end in time."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
