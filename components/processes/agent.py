"""Starts the ranks of one node, passes signals on, and ends with the one exit code that says what happened."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from types import FrameType

from components.errors import EXIT_DONE, ConfigError, DataError, Hung, OutOfMemory, Preempted
from components.processes.node import Node, usable_cores
from components.processes.stopping import SIGNALS
from components.progress import Progress

_POLL_SECONDS = 0.05
_IN_ORDER = (EXIT_DONE, Preempted.exit_code)
# The ranks of one gang end for one reason: a rank with one of these codes knows it, the first of them best. The others
# only noticed that a peer was gone.
_CAUSES = tuple(error.exit_code for error in (ConfigError, DataError, OutOfMemory, Preempted, Hung))
_SIGNALLED = 128  # and above: as a shell tells a death by a signal
_FINAL_CODES = (EXIT_DONE, Preempted.exit_code, ConfigError.exit_code, DataError.exit_code)


@dataclass(frozen=True)
class Grace:
    """How long ranks may go on, in seconds, until they are killed.

    Attributes:
        stop: After a signal, and after one of them has ended in order. They end by themselves by then, saved or not;
            those that cannot are killed after ``crash`` more seconds.
        crash: After one of them has crashed.
        done: After one of them has done its work, if that says nothing about the others: ``inf`` lets each take its
            time. None: as after a signal, for ranks that end together.
    """

    stop: float
    crash: float
    done: float | None = None


class Signals:
    """Notes that this process was asked to stop, and passes that on to its ranks.

    Attributes:
        stop_requested: Whether this process was asked to stop.
        ranks: The processes that a signal is passed on to.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self.ranks: list[subprocess.Popen[bytes]] = []
        self._interrupts = 0

    @contextmanager
    def listening(self) -> Iterator[Signals]:
        """Take over SIGTERM, SIGINT and SIGHUP for a while.

        Only the main thread may call this. Before there are ranks a signal raises `Preempted`.
        """
        numbers = [*SIGNALS, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
        handlers = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def pass_on(self) -> None:
        """Ask every rank that still runs to stop."""
        for process in self.ranks:
            process.send_signal(signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.stop_requested = True
        self._interrupts += number == signal.SIGINT
        if not self.ranks:
            raise Preempted("asked to stop before the ranks were started")
        if self._interrupts > 1:  # somebody at a keyboard does not want to wait
            _kill(self.ranks)
        else:
            self.pass_on()


class Agent:
    """The ranks of one node, from their start to their end.

    Args:
        command: Starts one rank; the rest of its command line follows.
        node: The place of this node in the gang.
        grace: When to kill ranks.
        signals: Listens for requests to stop.
        progress: Gets an event with each rank's process id, and one if ranks had to be killed.
        parent: The process that started this one; when it is gone, the ranks are killed. None: it is not watched.
    """

    def __init__(
        self,
        command: Sequence[str],
        node: Node,
        grace: Grace,
        signals: Signals,
        progress: Progress,
        parent: int | None = None,
    ) -> None:
        self._command = command
        self._node = node
        self._grace = grace
        self._signals = signals
        self._progress = progress
        self._parent = parent

    def run(self, restarts: int = 0) -> int:
        """Run the ranks until all have ended, and again after a crash as often as ``restarts`` says.

        Returns:
            0 if all ranks ended well. Otherwise the code of the rank that knows the reason, else of one that was killed
            from outside (its peers fail because it is gone), else of the first that failed. A death by signal n counts
            as 128 + n.

        Raises:
            ConfigError: If one of several nodes is to restart by itself.
        """
        if restarts and self._node.nodes > 1:
            raise ConfigError(
                f"--restarts {restarts} on one of {self._node.nodes} nodes: expected 0. "
                "The ranks of all nodes must start together; leave restarts to what starts the nodes"
            )
        for remaining in range(restarts, -1, -1):
            code = self._run_once()
            if code in _FINAL_CODES or self._signals.stop_requested or not remaining:
                break
            self._progress.event("restarting", exit_code=code, remaining=remaining - 1)
        return code

    def _run_once(self) -> int:
        with _meeting_port(self._node) as port:
            try:
                self._start(port)
                return self._wait()
            finally:
                _kill(self._signals.ranks)

    def _start(self, port: int) -> None:
        # A rank starts with these signals blocked, and unblocks them when it is ready; until then they wait.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._signals.ranks = []
            for local in range(self._node.ranks):
                self._signals.ranks.append(self._start_rank(local, port))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if self._signals.stop_requested:
            self._signals.pass_on()

    def _start_rank(self, local: int, port: int) -> subprocess.Popen[bytes]:
        node = self._node
        rank = node.number * node.ranks + local
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(node.nodes * node.ranks),
            "LOCAL_WORLD_SIZE": str(node.ranks),
            "MASTER_ADDR": node.address,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // node.ranks))),
        }
        # A session of its own, so that Ctrl-C reaches a rank once, through the agent, and its children end with it.
        process = subprocess.Popen(  # noqa: S603 - no shell
            self._command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self._progress.event("rank-started", rank=rank, pid=process.pid)
        return process

    def _wait(self) -> int:
        codes: dict[int, int] = {}  # exit codes by local rank, in the order in which the ranks ended
        deadline = inf
        by_themselves: int | None = None  # how many had ended when the others were killed here
        while len(codes) < self._node.ranks:
            for local, process in enumerate(self._signals.ranks):
                if local not in codes and process.poll() is not None:
                    codes[local] = _shell_code(process.returncode)
                    deadline = min(deadline, self._deadline(codes[local]))
                    if codes[local] == Preempted.exit_code:
                        # It may have ended by itself, before its first step: then the others wait for it in vain.
                        self._signals.pass_on()
            if self._signals.stop_requested:
                deadline = min(deadline, self._deadline(Preempted.exit_code))
            if time.monotonic() > deadline or self._is_orphan():
                self._kill_ranks(codes)
                by_themselves = len(codes) if by_themselves is None else by_themselves
                deadline = inf
            time.sleep(_POLL_SECONDS)
        return _cause(list(codes.values()), by_themselves)

    def _deadline(self, code: int) -> float:
        """Return until when the others may go on after one ended with this code."""
        now, grace = time.monotonic(), self._grace
        if code == EXIT_DONE and grace.done is not None:
            return now + grace.done
        return now + grace.crash + (grace.stop if code in _IN_ORDER else 0.0)

    def _is_orphan(self) -> bool:
        return self._parent is not None and os.getppid() != self._parent

    def _kill_ranks(self, codes: Mapping[int, int]) -> None:
        _kill(self._signals.ranks)
        first = self._node.number * self._node.ranks
        killed = [first + local for local in range(self._node.ranks) if local not in codes]
        with contextlib.suppress(OSError):  # the reader of the events may be gone, which may be the reason
            self._progress.event("ranks-killed", ranks=killed)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill ranks together with what they started, also if a rank itself has ended."""
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _cause(codes: Sequence[int], by_themselves: int | None) -> int:
    """Return the exit code that stands for all of them, given in the order in which the ranks ended.

    Args:
        codes: One per rank.
        by_themselves: How many ended before the agent killed the others; None if it killed none.
    """
    causes = [code for code in _CAUSES if code in codes]
    killed_from_outside = [code for code in codes[:by_themselves] if code > _SIGNALLED]
    return next((code for code in (*causes, *killed_from_outside, *codes) if code), EXIT_DONE)


def _shell_code(code: int) -> int:
    return code if code >= 0 else _SIGNALLED - code


@contextmanager
def _meeting_port(node: Node) -> Iterator[int]:
    """Yield the port where the ranks meet: the node's, or a free one that no other process gets meanwhile.

    The socket is bound but does not listen, so rank 0 can listen there, since both allow the address to be reused.
    """
    if node.port:
        yield node.port
        return
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((node.address, 0))
        yield int(reserved.getsockname()[1])
