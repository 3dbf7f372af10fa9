"""Read the new and changed files of a source, many at the same time, and save what was read on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice

from components.image.records import Rejection
from components.image.sources import Source
from components.ingest.catalog import Catalog
from components.ingest.config import IngestConfig
from components.ingest.file_cache import CacheJournal, FileRecord
from components.ingest.listing import ARCHIVE, READ_KINDS, ListedFile
from components.progress import Progress

# The journal gets a new part each time that this many rows were read, in case the step is killed.
JOURNAL_ROWS = 5000
# A thread reads this many small files in one go, so that handing them over costs little.
FILES_AT_ONCE = 16

# Reasons that lie with the storage rather than with the file: such a file is tried again by each run.
TRANSIENT_REASONS = ("unreadable", "symlink-outside")

# Reads one file.
ReadFile = Callable[[Source, IngestConfig, ListedFile], list[FileRecord | Rejection]]


def read_new_files(
    source: Source,
    config: IngestConfig,
    layout: str,
    catalog: Catalog,
    journal: CacheJournal,
    read_file: ReadFile,
    progress: Progress,
) -> tuple[int, bool]:
    """Read the files that the catalog has no record of, and add their records to it.

    Returns:
        How many files were read, and whether all of it is stable: no file was rejected for a transient reason.
    """
    total, stable = catalog.count_files_to_read(READ_KINDS[layout]), True
    if total:
        journal.append([])  # before the long reading: a workdir that cannot be written shows now
    contents = _read_in_threads(source, catalog.files_to_read(READ_KINDS[layout]), config, read_file)
    for results in _batches(progress.track(contents, "files read", total), JOURNAL_ROWS):
        records = [result for result in results if isinstance(result, FileRecord)]
        rejections = [result for result in results if isinstance(result, Rejection)]
        stable &= not any(rejection.reason in TRANSIENT_REASONS for rejection in rejections)
        catalog.add_records(records, fresh=True)
        catalog.reject(rejections)
        journal.append(records)
    return total, stable


def _read_in_threads(
    source: Source, files: Iterable[ListedFile], config: IngestConfig, read_file: ReadFile
) -> Iterator[list[FileRecord | Rejection]]:
    """Yield what is in each file, in the files' order, while threads read on."""

    def read(chunk: Sequence[ListedFile]) -> list[list[FileRecord | Rejection]]:
        return [read_file(source, config, file) for file in chunk]

    pending: deque[Future[list[list[FileRecord | Rejection]]]] = deque()
    pool = ThreadPoolExecutor(config.readers, thread_name_prefix="read")
    try:
        for chunk in _chunks(files):
            pending.append(pool.submit(read, chunk))
            if len(pending) > 2 * config.readers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(files: Iterable[ListedFile]) -> Iterator[list[ListedFile]]:
    """Yield archives one by one, and small files several at a time."""
    for is_archive, same_kind in groupby(files, key=lambda file: file.kind == ARCHIVE):
        while chunk := list(islice(same_kind, 1 if is_archive else FILES_AT_ONCE)):
            yield chunk


def _batches(parts: Iterable[list[FileRecord | Rejection]], size: int) -> Iterator[list[FileRecord | Rejection]]:
    """Join parts until they have at least ``size`` rows; no part is divided."""
    batch: list[FileRecord | Rejection] = []
    for part in parts:
        batch += part
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
