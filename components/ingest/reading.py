"""Read what is new or changed in a source, many files at the same time, and write down on the way what was read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice

from components.image.records import Rejection
from components.image.sources import Source
from components.ingest.catalog import Catalog
from components.ingest.config import IngestConfig
from components.ingest.known import Journal, Seen
from components.ingest.listing import ARCHIVE, READ, Listed
from components.progress import Progress

# What was read is written down in case the step is killed, each time so many rows were read.
JOURNAL_ROWS = 5000
# Small files that a thread reads in one go, so that handing them over costs little.
FILES_AT_ONCE = 16

# Rejections by the place rather than by the file: they may pass, and are tried again each time.
PASSING = ("unreadable", "symlink-outside")

Look = Callable[[Source, IngestConfig, Listed], list[Seen | Rejection]]


def read_unseen(
    source: Source,
    config: IngestConfig,
    layout: str,
    catalog: Catalog,
    journal: Journal,
    look: Look,
    progress: Progress,
) -> tuple[int, bool]:
    """Read into the catalog what is not there yet.

    Returns:
        How many files were read, and whether all that could not be read would not be another time either.
    """
    total, lasting = catalog.unseen_count(READ[layout]), True
    if total:
        journal.add([])  # before the long reading: a workdir that cannot be written shows now
    files = progress.track(_looks(source, catalog.unseen(READ[layout]), config, look), "files read", total)
    for outcomes in _in_rows(files, JOURNAL_ROWS):
        rows = [outcome for outcome in outcomes if isinstance(outcome, Seen)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
        lasting &= not any(one.reason in PASSING for one in refused)
        catalog.see(rows, fresh=True)
        catalog.reject(refused)
        journal.add(rows)
    return total, lasting


def _looks(
    source: Source, files: Iterable[Listed], config: IngestConfig, look: Look
) -> Iterator[list[Seen | Rejection]]:
    """Yield what is in each file, in their order, while threads read on."""

    def look_at(some: Sequence[Listed]) -> list[list[Seen | Rejection]]:
        return [look(source, config, file) for file in some]

    waiting: deque[Future[list[list[Seen | Rejection]]]] = deque()
    pool = ThreadPoolExecutor(config.readers, thread_name_prefix="read")
    try:
        for some in _handfuls(files):
            waiting.append(pool.submit(look_at, some))
            if len(waiting) > 2 * config.readers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _handfuls(files: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Yield archives one by one and small files by the handful."""
    for archive, some in groupby(files, key=lambda file: file.kind == ARCHIVE):
        while handful := list(islice(some, 1 if archive else FILES_AT_ONCE)):
            yield handful


def _in_rows(parts: Iterable[list[Seen | Rejection]], most: int) -> Iterator[list[Seen | Rejection]]:
    """Yield the rows of several parts together, none of which is divided."""
    rows: list[Seen | Rejection] = []
    for part in parts:
        rows += part
        if len(rows) >= most:
            yield rows
            rows = []
    if rows:
        yield rows
