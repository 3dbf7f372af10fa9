"""Starts the ranks of one node, passes signals on, and ends with the one exit code that says what happened."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from types import FrameType

from components.errors import EXIT_DONE, ConfigError, DataError, Hung, OutOfMemory, Preempted
from components.progress import Progress
from components.train.processes.node import Node, usable_cores
from components.train.processes.stopping import SIGNALS

RANK = (sys.executable, "-m", "components.train.rank")

_POLL_SECONDS = 0.05
_IN_ORDER = (EXIT_DONE, Preempted.exit_code)
# What the ranks of one gang end with is one story: those that come first here know the cause, the others only saw
# that a peer was gone.
_TELLING_CODES = tuple(error.exit_code for error in (ConfigError, DataError, OutOfMemory, Preempted, Hung))
_SIGNALLED = 128  # and above: as a shell tells a death by a signal
_FINAL_CODES = (EXIT_DONE, Preempted.exit_code, ConfigError.exit_code, DataError.exit_code)


@dataclass(frozen=True)
class Grace:
    """How long ranks may go on, in seconds, until they are killed.

    Attributes:
        stop: After a signal, and after one of them has ended in order. They end by themselves by then, saved or not;
            those that cannot are killed after ``crash`` more seconds.
        crash: After one of them has crashed.
    """

    stop: float
    crash: float


class Signals:
    """Notes that this process was asked to stop, and passes that on to its ranks."""

    def __init__(self) -> None:
        self.asked = False
        self.ranks: list[subprocess.Popen[bytes]] = []
        self._interrupts = 0

    @contextmanager
    def listening(self) -> Iterator[Signals]:
        """Take over SIGTERM, SIGINT and SIGHUP for a while.

        Before there are ranks a signal ends the work in hand with `Preempted`.
        """
        wanted = [*SIGNALS, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
        kept = {number: signal.signal(number, self._note) for number in wanted}
        try:
            yield self
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def pass_on(self) -> None:
        """Ask every rank that still runs to stop."""
        for process in self.ranks:
            process.send_signal(signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
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
        node: This machine's place in the gang.
        grace: When to kill ranks.
        signals: Listens for those who want it to stop.
        progress: Told each rank's process id, and which ranks had to be killed.
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
            0 where all ranks ended well, otherwise the code of the rank that knows why, of one that somebody else
            killed, since its peers fail for want of it, or of the first that failed; a death by signal n counts as
            128 + n.

        Raises:
            ConfigError: Where one of several machines is to restart by itself.
        """
        if restarts and self._node.nodes > 1:
            raise ConfigError(
                f"--restarts {restarts} on one of {self._node.nodes} machines: expected 0. "
                "The ranks of all machines must start together; leave it to what starts the machines"
            )
        for left in range(restarts, -1, -1):
            code = self._run_once()
            if code in _FINAL_CODES or self._signals.asked or not left:
                break
            self._progress.event("restarting", exit_code=code, left=left - 1)
        return code

    def _run_once(self) -> int:
        with _meeting_port(self._node) as port:
            try:
                self._start(port)
                return self._wait()
            finally:
                _kill(self._signals.ranks)

    def _start(self, port: int) -> None:
        # A rank starts with these signals blocked, and takes them once it is ready to; until then they wait.
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._signals.ranks = []
            for local in range(self._node.ranks):
                self._signals.ranks.append(self._start_rank(local, port))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        if self._signals.asked:
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
        ended: dict[int, int] = {}  # exit codes by local rank, in the order in which they ended
        deadline = inf
        by_themselves: int | None = None  # how many had ended when the others were killed here
        while len(ended) < self._node.ranks:
            for local, process in enumerate(self._signals.ranks):
                if local not in ended and process.poll() is not None:
                    ended[local] = _shell_code(process.returncode)
                    deadline = min(deadline, self._deadline(ended[local]))
                    if ended[local] == Preempted.exit_code:
                        # It may have left by itself, before its first step: then the others wait for it in vain.
                        self._signals.pass_on()
            if self._signals.asked:
                deadline = min(deadline, self._deadline(EXIT_DONE))
            if time.monotonic() > deadline or self._is_orphan():
                self._give_up(ended)
                by_themselves = len(ended) if by_themselves is None else by_themselves
                deadline = inf
            time.sleep(_POLL_SECONDS)
        codes = list(ended.values())
        killed = [code for code in codes[:by_themselves] if code > _SIGNALLED]
        known = [code for code in _TELLING_CODES if code in codes]
        return next((code for code in (*known, *killed, *codes) if code), 0)

    def _deadline(self, code: int) -> float:
        """Return until when the others may go on after one ended with this code."""
        return time.monotonic() + self._grace.crash + (self._grace.stop if code in _IN_ORDER else 0.0)

    def _is_orphan(self) -> bool:
        return self._parent is not None and os.getppid() != self._parent

    def _give_up(self, ended: dict[int, int]) -> None:
        _kill(self._signals.ranks)
        first = self._node.number * self._node.ranks
        killed = [first + local for local in range(self._node.ranks) if local not in ended]
        with contextlib.suppress(OSError):  # its reader may be gone, which may be why
            self._progress.event("ranks-killed", ranks=killed)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill ranks together with what they started, also where a rank itself has ended."""
    for process in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _shell_code(code: int) -> int:
    return code if code >= 0 else _SIGNALLED - code


@contextmanager
def _meeting_port(node: Node) -> Iterator[int]:
    """Yield the port where the ranks meet: the given one, or one that nobody else is given meanwhile.

    The socket is bound but does not listen, so rank 0 can listen there, since both allow the address to be reused.
    """
    if node.port:
        yield node.port
        return
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((node.address, 0))
        yield int(reserved.getsockname()[1])
