"""The report of a run that goes on is written again now and then, one at a time."""

from __future__ import annotations

import threading

from components.errors import StorageError
from pipeline.local.refresh import ReportRefresher


def test_a_report_is_written_once_the_last_one_is_old_enough_and_done() -> None:
    now, begun, may_end = [0.0], threading.Semaphore(0), threading.Event()
    written: list[float] = []

    def write() -> None:
        begun.release()
        assert may_end.wait(10)
        written.append(now[0])
        raise StorageError("the store is away")

    with ReportRefresher(write, lambda: now[0], every=30.0) as refresher:
        refresher.refresh()
        assert not refresher.has_begun, "the run has only just begun"
        now[0] = 30.0
        refresher.refresh()
        assert begun.acquire(timeout=10)
        now[0] = 90.0
        refresher.refresh()
        assert not begun.acquire(blocking=False), "the one before is still being written"
        may_end.set()
    assert written == [90.0]
    with refresher:
        now[0] = 120.0
        refresher.refresh()
    assert len(written) == 2
    assert refresher.has_begun
