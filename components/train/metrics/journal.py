"""Files of JSON lines that grow while training runs, on any storage, without holding it up.

In a local folder a line is written at once. Elsewhere to append means to write the whole object anew, so a thread does
that, one write at a time, and lines that arrive meanwhile go with the next. Lines that cannot be written are kept for
the next write: if the store is away for a while, nothing is lost.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from components.errors import NotFound, StorageError
from components.storage.base import Storage


class Journal:
    """Adds lines to some files of a run; it is their one writer.

    Args:
        run: The run's folder.
        failed: Called with the reason if lines cannot be written, once until it works again; possibly from a thread.
    """

    def __init__(self, run: Storage, failed: Callable[[str], None]) -> None:
        self._run = run
        self._failed = failed
        self._is_failing = False
        self._unwritten: dict[str, list[Mapping[str, Any]]] = {}
        self._lock = threading.Lock()
        self._thread = None if run.local_path() is not None else ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writing: Future[None] | None = None

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Queue a line; it is written with the next flush."""
        with self._lock:
            self._unwritten.setdefault(key, []).append(record)

    def flush(self, wait: bool = False) -> None:
        """Write the queued lines; with ``wait``, return only once they are written or have failed."""
        if self._thread is None:
            self._write()
            return
        if wait and self._writing is not None:
            self._writing.result()
        if self._writing is None or self._writing.done():
            self._writing = self._thread.submit(self._write)
        if wait:
            self._writing.result()

    def lines(self, key: str) -> list[dict[str, Any]]:
        """Return the lines of a file; a line that was torn when its writer was killed is skipped."""
        return list(_parsed(self._read(key)))

    def rewind(self, key: str, step: int | None) -> int:
        """Remove the lines about steps beyond ``step``, unless it is None, and torn ones.

        Returns:
            How many whole lines were removed.
        """
        data = self._read(key)
        lines = list(_parsed(data))
        kept = [line for line in lines if step is None or (line.get("step") or 0) <= step]
        if len(kept) < len(data.splitlines()) or (data and not data.endswith(b"\n")):
            self._run.write_lines(key, kept)
        return len(lines) - len(kept)

    def _read(self, key: str) -> bytes:
        try:
            return self._run.read(key)
        except NotFound:
            return b""

    def _write(self) -> None:
        with self._lock:
            keys = list(self._unwritten)
        for key in keys:
            with self._lock:
                records = self._unwritten.pop(key)
            try:
                self._run.append_lines(key, records)
            except StorageError as error:
                with self._lock:
                    self._unwritten[key] = [*records, *self._unwritten.get(key, [])]
                if not self._is_failing:
                    self._is_failing = True
                    self._failed(str(error))
                return
        self._is_failing = False


def _parsed(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
