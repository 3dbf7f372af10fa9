"""Starts the ranks of one node, passes signals on, and ends with the one exit code that says what happened."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from components.errors import ConfigError, DataError, Preempted
from components.progress import Progress

_POLL_SECONDS = 0.05
# How long the other ranks get once one has ended: long enough to commit a checkpoint, short enough to notice a hang.
_GRACE_SECONDS = {0: 600.0, Preempted.exit_code: 600.0}
_GRACE_AFTER_CRASH_SECONDS = 5.0
# A rank that is told its settings or data are wrong knows the cause; its peers only see a lost connection.
_TELLING_CODES = (ConfigError.exit_code, DataError.exit_code, Preempted.exit_code)


@dataclass(frozen=True)
class Node:
    """This machine's place in the gang.

    Attributes:
        nodes: How many machines there are.
        number: This one's number, from 0.
        ranks: Processes to start here.
        address: Host that the ranks meet at.
        port: Port that they meet at; 0 picks a free one, which only one machine alone can do.
    """

    nodes: int
    number: int
    ranks: int
    address: str
    port: int


def this_node(environment: Mapping[str, str], ranks: int) -> Node:
    """Read this machine's place from the ``PET_*`` variables that Kubeflow Trainer sets; one machine without them.

    Args:
        environment: The process environment.
        ranks: Processes to start where PET_NPROC_PER_NODE does not say.

    Raises:
        ConfigError: Where a variable is not a number.
    """

    def number(name: str, default: int) -> int:
        text = environment.get(name) or str(default)
        if not text.isdigit():
            raise ConfigError(f"{name}={text!r} in the environment: expected a number")
        return int(text)

    return Node(
        nodes=number("PET_NNODES", 1),
        number=number("PET_NODE_RANK", 0),
        ranks=number("PET_NPROC_PER_NODE", ranks),
        address=environment.get("PET_MASTER_ADDR", "127.0.0.1"),
        port=number("PET_MASTER_PORT", 0),
    )


def run_ranks(arguments: Sequence[str], node: Node, progress: Progress) -> int:
    """Run ``python -m components.train.worker`` once per rank of this node until all have ended.

    Args:
        arguments: The worker's command line.
        node: This machine's place in the gang.
        progress: Told each rank's process id.

    Returns:
        0 where all ranks ended well, otherwise the code of the rank that knows why, or of the first that failed; the
        death by signal n counts as 128 + n.
    """
    port = node.port or _free_port()
    ranks = [_start(arguments, node, local, port) for local in range(node.ranks)]
    for local, process in enumerate(ranks):
        progress.event("rank-started", rank=node.number * node.ranks + local, pid=process.pid)
    with _passing_on_signals(ranks):
        return _wait(ranks)


def _start(arguments: Sequence[str], node: Node, local: int, port: int) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // node.ranks))
    environment = {
        **os.environ,
        "RANK": str(node.number * node.ranks + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(node.nodes * node.ranks),
        "LOCAL_WORLD_SIZE": str(node.ranks),
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    # A session of its own, so that Ctrl-C reaches a rank once, through the agent.
    command = [sys.executable, "-m", "components.train.worker", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - no shell


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    failed: list[int] = []
    deadline = None
    seen: set[int] = set()
    while len(seen) < len(ranks):
        for rank, process in enumerate(ranks):
            if rank in seen or process.poll() is None:
                continue
            seen.add(rank)
            code = process.returncode if process.returncode >= 0 else 128 - process.returncode
            failed += [code] if code else []
            deadline = time.monotonic() + _GRACE_SECONDS.get(code, _GRACE_AFTER_CRASH_SECONDS)
        if deadline is not None and time.monotonic() > deadline:
            for process in ranks:
                process.kill()
        time.sleep(_POLL_SECONDS)
    return next((code for code in _TELLING_CODES if code in failed), failed[0] if failed else 0)


@contextmanager
def _passing_on_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in ranks:
            process.send_signal(number)

    kept = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        for process in ranks:
            process.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
