"""Convert files in a process of its own: those who read them are large programs in C, and the files are strangers'.

This file is both sides. A request is a line of JSON on standard input, the answer one on standard output. If the
process dies of a file, is stuck on it, or needs too much memory, the rest of that file is rejected, and the next file
gets a new process. It ends when its input does, so it does not outlive the process that started it for long.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from components import errors
from components.errors import ConfigError, DarkroomError, DataError, StorageError
from components.image.records import Rejection
from components.image.sources import Source, SourceFile, open_source
from components.ingest.config import IngestConfig, RowsConfig
from components.ingest.imports.conversion import Part, convert, rejection_values
from components.ingest.imports.row_files import ADDRESSES
from components.ingest.imports.rows import BROKEN

_GIB = 2**30


class Convert(Protocol):
    """Converts some rows of a file into a tar, as `components.ingest.imports.conversion.convert` says."""

    def __call__(self, source: Source, file: SourceFile, config: IngestConfig, start: int, path: Path) -> Part:
        """Convert the rows of a file from ``start`` on into a tar at ``path``."""


@contextmanager
def open_converter(config: RowsConfig, layout: str) -> Iterator[Convert]:
    """Return what converts files as the settings say; its process ends with the block."""
    if not config.isolated or layout == ADDRESSES:  # what is downloaded is read by another program anyway
        yield convert
        return
    converter = _ProcessConverter(config)
    try:
        yield converter
    finally:
        converter.close()


class _ProcessConverter:
    def __init__(self, config: RowsConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, source: Source, file: SourceFile, config: IngestConfig, start: int, path: Path) -> Part:
        """Convert rows, as ``Convert`` says."""
        request = {
            "source": source.url,
            "file": file._replace(rejection=None),
            "config": config.model_dump(mode="json"),
            "start": start,
            "path": str(path),
        }
        answer = self._ask(request)
        if answer is None:
            problem = f"{self._end()}, from row {start} on; make it again, or raise ingest.rows.memory_gib or seconds"
            return Part(None, (Rejection(file.name, "ingest", BROKEN, problem),), stable=False)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        rejections = tuple(Rejection(**values) for values in answer.pop("rejections"))
        return Part(rejections=rejections, **answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(BrokenPipeError):
                self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a request; None if the process has died of it."""
        if self._process is None:
            limits = (str(round(self._config.memory_gib * _GIB)), str(self._config.seconds))
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", __name__, *limits], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if line.endswith(b"\n"):
                answer = json.loads(line)
                assert isinstance(answer, dict)
                return answer
        return None

    def _end(self) -> str:
        """Say how the process has died."""
        assert self._process is not None
        with suppress(BrokenPipeError):
            self._process.communicate()
        code, self._process = self._process.returncode, None
        if code == -signal.SIGALRM:
            return f"some rows of it take longer than {self._config.seconds:g} s to read"
        return f"its reader died of it ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def main() -> None:
    """Answer requests until there are no more; the arguments are the limits, in bytes and seconds."""
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    # Ctrl-C reaches the whole process group; the process that started this one decides when to end it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not be read as an answer
    with suppress(BrokenPipeError):  # the process that asked is gone
        for line in sys.stdin.buffer:
            answer = _answer(json.loads(line), seconds)
            signal.setitimer(signal.ITIMER_REAL, 0)
            answers.write(json.dumps(answer).encode() + b"\n")


def _answer(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    def go_on() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process, whatever that is stuck in

    go_on()
    try:
        source, config = open_source(request["source"]), IngestConfig.parse(request["config"])
        file = SourceFile(*request["file"])
        part = convert(source, file, config, request["start"], Path(request["path"]), go_on)
    except (ConfigError, DataError, StorageError) as error:
        kinds: tuple[type[DarkroomError], ...] = (ConfigError, DataError, StorageError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        return {"error": kind.__name__, "message": str(error)}
    return {**part.counts(), "rejections": [rejection_values(one) for one in part.rejections]}


if __name__ == "__main__":
    main()
