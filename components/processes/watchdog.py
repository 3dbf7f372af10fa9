"""A thread that ends a rank that hangs, or whose agent is gone.

A rank that waits for a dead or stuck peer waits inside a collective, in some of them for ever. Each rank watches only
itself: the peers of one that hangs hang too, in the collective, and their watchdogs end them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from components.errors import Hung
from components.progress import Progress

_POLL_SECONDS = 0.5
_LAST_WORDS_SECONDS = 10.0


class Watchdog:
    """Counts the seconds since the last step, and ends the process when there are too many.

    Time in which this process itself was suspended (a closed laptop, a frozen or migrating machine) does not count.

    Args:
        rank: This process's place among the ranks.
        progress: Gets an event before the process ends.
        start_seconds: Limit until the first step is done: loading, compiling, meeting the other ranks; None: no limit.
        step_seconds: Limit from one step to the next, with all that happens between them; None: no limit.
        parent: The process that started this one; when it is gone this one ends. None: it is not watched.
        step_name: What this rank calls a step.
        advice: What to do if the rank was not hung but slow.
        clock: Seconds that never go backwards.
    """

    def __init__(
        self,
        rank: int,
        progress: Progress,
        start_seconds: float | None = None,
        step_seconds: float | None = None,
        parent: int | None = None,
        step_name: str = "step",
        advice: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._progress = progress
        self._start_seconds = start_seconds
        self._step_seconds = step_seconds
        self._parent = parent
        self._step_name = step_name
        self._advice = advice
        self._clock = clock
        self._step: int | None = None
        self._beats = self._counted_beats = 0
        self._idle = 0.0
        self._last = clock()

    def start(self) -> None:
        """Watch from now on, in a thread."""
        self._arm()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """Note that a step is done."""
        self._step = step
        self._beats += 1

    def overdue(self) -> float | None:
        """Check once: return the seconds since the last step if they are too many, otherwise None."""
        now = self._clock()
        if self._beats != self._counted_beats:
            self._counted_beats, self._idle = self._beats, 0.0
        else:
            self._idle += min(now - self._last, 2 * _POLL_SECONDS)
        self._last = now
        limit = self._limit()
        return self._idle if limit is not None and self._idle > limit else None

    def _limit(self) -> float | None:
        return self._step_seconds if self._beats else self._start_seconds

    def _watch(self) -> None:
        while True:
            if self._parent is not None and os.getppid() != self._parent:
                _die()
            idle = self.overdue()
            if idle is not None:
                self._end_hung(idle)
            self._arm()
            time.sleep(_POLL_SECONDS)

    def _arm(self) -> None:
        """Set a timer for the case that this thread cannot run because another one never releases the interpreter."""
        limit = self._limit()
        if limit is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(2 * limit + _LAST_WORDS_SECONDS, exit=True)

    def _end_hung(self, idle: float) -> None:
        # If nobody reads what is written below, writing blocks: SIGALRM then ends the process.
        signal.setitimer(signal.ITIMER_REAL, _LAST_WORDS_SECONDS)
        faulthandler.cancel_dump_traceback_later()
        name = self._step_name
        after = f"after {name} {self._step}" if self._beats else f"before its first {name}"
        advice = f"If it was only slow: {self._advice}" if self._advice else ""
        with contextlib.suppress(OSError, ValueError):
            self._progress.event("hung", rank=self._rank, **{name: self._step}, seconds=round(idle, 1))
            print(  # noqa: T201
                f"rank {self._rank}: hung {after}, for {idle:.0f} s; the stacks of its threads follow. {advice}",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(Hung.exit_code)


def _die() -> None:
    """End this process, and what it started if it leads a process group of its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
