"""TensorBoard and W&B beside ``metrics.jsonl``, if configured; none of them can delay or stop training.

Each tracker runs in a process of its own (`components.train.metrics.tracker_process`) that gets lines of JSON through a
pipe. A library that hangs, crashes, waits for a server or changes global state does so there. A tracker that does not
keep up or has ended is dropped, and training goes on. When training ends, for whatever reason, the pipe closes; the
tracker then delivers what it still has and ends by itself.
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

# A single write of at most this size to a pipe with room arrives whole (POSIX: PIPE_BUF is 4,096 bytes on Linux).
MAX_LINE_BYTES = 4096
_PIPE_BYTES = 1 << 20  # some thousand lines: what comes while a library starts, or a server is away
_EXIT_SECONDS = 1.0
# A tracker is not a rank: it must not try to join the others, and needs no device.
_RANK_VARIABLES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
OnEvent = Callable[..., None]


def check_installed(trackers: Sequence[str]) -> None:
    """Check that the packages of some trackers are installed.

    Raises:
        ConfigError: If one is missing; the message says what to do.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None or importlib.util.find_spec("accelerate") is None:
            raise ConfigError(
                f"train.metrics.trackers has {name}, which is not installed here; run "
                f"pip install accelerate {name}, or remove it"
            )


class Trackers:
    """The trackers of a run, each at the other end of a pipe.

    Args:
        names: Which: ``tensorboard``, ``wandb``.
        description: The fields of `components.train.metrics.tracker_process.RunDescription`.
        on_event: Called with an event if a tracker has started, and, once for each, if it is dropped.
    """

    def __init__(self, names: Sequence[str], description: Mapping[str, Any], on_event: OnEvent) -> None:
        self._on_event = on_event
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            try:
                self._processes[name] = _start(name, description)
            except OSError as error:
                on_event("tracker-dropped", tracker=name, why=f"it could not be started: {error}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of an optimizer step."""
        self._send({"step": step, "values": dict(values)})

    def images(self, step: int, sheet: str, size: tuple[int, int]) -> None:
        """Log a row of images ``[H, n·W, 3]``, stored under the key ``sheet`` of the run; ``size`` is (H, W) of one."""
        self._send({"step": step, "sheet": sheet, "size": size})

    def save(self) -> None:
        """Make the trackers upload files that are only on this machine to the run's storage."""
        self._send({"save": True})

    def close(self, patience: float) -> None:
        """End the trackers, and wait some seconds for them; one that takes longer goes on without being waited for."""
        for process in self._processes.values():
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        deadline = time.monotonic() + patience
        for name, process in list(self._processes.items()):
            code = _wait(process, max(deadline - time.monotonic(), 0.0))
            self._receive(name, process)
            if code is None:
                self._on_event(
                    "tracker-left", tracker=name, why=f"it did not end within {patience:g} s; it goes on alone"
                )
            elif code != 0:
                self._drop(name, process, f"it ended with exit code {code}")
            else:
                self._processes.pop(name, None)
                _pipe(process.stdout).close()

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        assert len(line) <= MAX_LINE_BYTES, "a longer line could arrive in two parts"
        for name, process in list(self._processes.items()):
            self._receive(name, process)
            if name not in self._processes:
                continue
            try:
                os.write(_pipe(process.stdin).fileno(), line)
            except BlockingIOError:
                self._drop(name, process, "it does not keep up")
            except OSError:
                code = _wait(process, _EXIT_SECONDS)
                self._receive(name, process)
                self._drop(name, process, f"it ended with exit code {code}")

    def _receive(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Report a tracker's own messages; one that gives up sends the problem."""
        try:
            data = os.read(_pipe(process.stdout).fileno(), 16 * MAX_LINE_BYTES)
        except BlockingIOError:
            return
        for line in data.splitlines():
            event = json.loads(line)
            if "problem" in event:
                self._drop(name, process, event["problem"])
            else:
                self._on_event("tracking", tracker=name, **event)

    def _drop(self, name: str, process: subprocess.Popen[bytes], why: str) -> None:
        if self._processes.pop(name, None) is None:
            return
        process.kill()
        _wait(process, _EXIT_SECONDS)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()
        self._on_event("tracker-dropped", tracker=name, why=why)


def _start(name: str, description: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key not in _RANK_VARIABLES}
    environment.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    # A session of its own: if a rank is killed with all its children, the tracker still gets its last seconds.
    process = subprocess.Popen(  # noqa: S603 - no shell
        [sys.executable, "-m", "components.train.metrics.tracker_process", name, json.dumps(description)],
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
    """Return the exit code of a process, or None if it does not end in time."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
