"""How one rank is asked to stop: by SIGTERM, SIGINT or a notice of the cloud. Nothing heavy is imported here.

Before its first step a rank has nothing new to save, so it ends at once, whatever it is doing. From then on the
request waits until the rank comes to a point at which it can stop; training's ranks agree on one
(`components/train/processes/agreement.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from components.errors import Preempted

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})


class Stopping:
    """Notes that this process was asked to stop.

    Args:
        report: Called with an event's name and a detail, such as ``SIGTERM``, from any thread.
        grace: Seconds from the request until the process ends, saved or not; None: as long as saving takes.
        leave: Ends the process with an exit code.
    """

    def __init__(
        self,
        report: Callable[[str, str], None] = lambda _event, _detail: None,
        grace: float | None = None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.grace = grace
        self._report_event = report
        self._leave = leave
        self._is_requested = False
        self._has_begun = False

    @property
    def is_requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._is_requested

    def ask(self, why: str) -> None:
        """Ask this process to stop: at once if no step is done yet, otherwise when it can."""
        if not self._is_requested:
            self._report("stop-asked", why)
        self.follow()

    def follow(self) -> None:
        """Stop because another rank was asked to; there is as much time as after `ask`."""
        first, self._is_requested = not self._is_requested, True
        if not self._has_begun:
            self._leave(Preempted.exit_code)
        elif first and self.grace is not None:
            timer = threading.Timer(self.grace, self._end_unsaved, [self.grace])
            timer.daemon = True
            timer.start()

    def begin(self) -> None:
        """Note that a step is done, so that from now on there is something to save."""
        self._has_begun = True

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT of this process; only its main thread may call this.

        A thread acts on them. Python runs signal handlers between two instructions of the main thread, which may be
        inside a collective that waits for a peer, or halfway through the import of a large library.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _nothing)
        os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)
        threading.Thread(target=self._hear, args=(reader,), name="stopping", daemon=True).start()
        # The agent starts ranks with these signals blocked: none is lost, and none kills a rank before this line.
        _unblock()

    def _end_unsaved(self, seconds: float) -> None:
        # The node is about to go. What is not committed by now is lost; the checkpoint before it stands.
        self._report("stop-unsaved", f"the checkpoint was not committed within {seconds:g} s; the one before it stands")
        self._leave(Preempted.exit_code)

    def _report(self, event: str, detail: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads the output any more
            self._report_event(event, detail)

    def _hear(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number in SIGNALS:
                    self.ask(signal.Signals(number).name)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Stand in for the default action, which is to die."""


def _forget() -> None:
    """Let a forked child, such as a loader's worker, end by its own signals and not report them to its parent."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _unblock()


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
