"""Rows of a list of addresses: img2dataset downloads their images, some at a time.

It is a program of its own, since what it needs does not fit beside what Darkroom needs (MIT licence; `pipx install
img2dataset`). It is started without a shell, in an empty folder, with nothing of this process's environment but what a
download takes: no credentials. It respects the answers of servers that forbid the use of their images for training
(``X-Robots-Tag: noai``). The images are kept as they came, and checked like all others.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import ConfigError, ImageRejected, StorageError
from components.image.sources import Source
from components.ingest.config import IngestConfig
from components.ingest.imports.address_checks import check_address
from components.ingest.imports.address_lists import ListEntry, read_list
from components.ingest.imports.rows import LONGEST_TEXT, ImageRow, RowReader
from components.storage.scratch import scratch_folder

FAILED, DISALLOWED = "download-failed", "download-disallowed"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_STARTING = 120  # seconds
_LAST_LINES = 500  # characters of the program's output that an error shows
_GIB = 2**30

_Numbered = tuple[int, ListEntry | ImageRejected]


class _Wanted(NamedTuple):
    """An address to download: its place in img2dataset's list, and what else its row says."""

    place: int
    address: str
    values: Mapping[str, Any]


@contextmanager
def open_addresses(source: Source, config: IngestConfig, name: str, size: int) -> Iterator[RowReader]:
    """Open a list of addresses.

    Raises:
        ConfigError: If the program that downloads is not installed.
    """
    program = shutil.which(config.addresses.program)
    if program is None:
        raise ConfigError(
            f"{config.addresses.program!a} is not installed, or not on PATH; it downloads the images of a list: pipx "
            "install img2dataset, or name another program (ingest.addresses.program)"
        )
    yield _AddressRows(source, config, name, size, program)


class _AddressRows:
    """The rows of one list."""

    def __init__(self, source: Source, config: IngestConfig, name: str, size: int, program: str) -> None:
        self._source = source
        self._config = config
        self._name = name
        self._size = size
        self._program = program

    def batches(self, start: int) -> Iterator[Iterator[ImageRow]]:
        """Yield all rows from one on, as ``RowReader.batches`` says."""
        entries = enumerate(read_list(self._source, self._config, self._name, self._size))
        batch: list[_Numbered] = []
        try:
            for entry in islice(entries, start, None):
                batch.append(entry)
                if len(batch) == self._config.addresses.batch:
                    yield self._download(batch)
                    batch = []
        except ImageRejected:  # the rest of the list cannot be read
            yield self._download(batch)
            raise
        yield self._download(batch)

    def _download(self, batch: list[_Numbered]) -> Iterator[ImageRow]:
        """Yield some rows with the images that were downloaded; each is read when it is its turn."""
        rejected: dict[int, ImageRejected] = {}
        wanted: dict[int, _Wanted] = {}
        for number, entry in batch:
            try:
                if isinstance(entry, ImageRejected):
                    raise entry
                address = check_address(entry[0], allow_private=self._config.addresses.allow_private)
                wanted[number] = _Wanted(len(wanted), address, entry[1])
            except ImageRejected as error:
                rejected[number] = error
        with scratch_folder("download") as folder:
            downloaded = self._run([one.address for one in wanted.values()], folder)
            for number, _ in batch:
                try:
                    if number in rejected:
                        raise rejected[number]
                    yield self._row(number, downloaded.read(wanted[number].place), wanted[number].values)
                except ImageRejected as error:
                    yield ImageRow(number, None, {}, problems=(error,))

    def _row(self, number: int, data: bytes, values: Mapping[str, Any]) -> ImageRow:
        fields = {str(name): field for name, value in values.items() if (field := _field(value)) is not None}
        caption = fields.pop(self._config.rows.caption, None) if self._config.rows.caption is not None else None
        return ImageRow(number, data, fields, caption if isinstance(caption, str) else None)

    def _run(self, addresses: list[str], folder: Path) -> Downloaded:
        """Download some addresses; there may be none."""
        settings = self._config.addresses
        urls, output, log = folder / "urls.jsonl", folder / "out", folder / "log.txt"
        urls.write_text("".join(json.dumps({"url": address}) + "\n" for address in addresses), "ascii")
        arguments = {
            "url_list": urls,
            "input_format": "jsonl",
            "url_col": "url",
            "output_format": "webdataset",
            "output_folder": output,
            "resize_mode": "no",
            "disable_all_reencoding": True,  # the images as they came
            "extract_exif": False,
            "processes_count": 1,
            "thread_count": settings.threads,
            "number_sample_per_shard": 10_000,  # one shard
            "timeout": settings.timeout,
            "retries": settings.retries,
            "user_agent_token": "darkroom",
        }
        rounds = -(-len(addresses) // settings.threads)
        seconds = _STARTING + 2 * rounds * settings.timeout * (1 + settings.retries)
        command = [self._program, *(f"--{name}={value}" for name, value in arguments.items())]
        output.mkdir()
        problem, memory = None, self._config.rows.memory_gib
        with log.open("wb") as printed:
            if addresses:
                problem = _wait(command, folder, printed.fileno(), seconds, memory)
        if problem is not None:
            last = log.read_text("utf-8", "replace")[-_LAST_LINES:].strip()
            raise StorageError(f"{self._program!a} {problem}; start the step again. It said: {last!a}")
        return Downloaded(output, self._config.limits.max_bytes)


def _wait(command: list[str], folder: Path, output: int, seconds: float, memory_gib: float) -> str | None:
    """Run the program; return what went wrong, if something did. Nothing of it is left running."""
    names = [*_PASSED_ON, *(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "no_proxy"))]
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(  # noqa: S603 - the program that the settings name, without a shell
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        start_new_session=True,
    )  # fmt: skip
    try:
        limit = round(memory_gib * _GIB)
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        code = process.wait(seconds)
        return None if code == 0 else f"has failed (exit code {code})"
    except subprocess.TimeoutExpired:
        return f"has not ended after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Downloaded:
    """What img2dataset has written: a tar of images, and beside it a table with the status of every address.

    Args:
        output: The folder.
        max_bytes: Largest image that is read.
    """

    def __init__(self, output: Path, max_bytes: int) -> None:
        import pyarrow.parquet as pq

        self._max_bytes = max_bytes
        self._failures: dict[int, str] = {}
        self._images: dict[int, tuple[Path, int, int]] = {}
        for table in sorted(output.glob("*.parquet")):
            for row in pq.read_table(table, columns=["key", "status", "error_message"]).to_pylist():
                if row["status"] != "success":
                    self._failures[int(row["key"])] = str(row["error_message"])
        for path in sorted(output.glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    stem, _, ending = member.name.partition(".")
                    if stem.isdecimal() and ending not in ("json", "txt"):
                        self._images[int(stem)] = path, member.offset_data, member.size

    def read(self, index: int) -> bytes:
        """Return the image of an address, by its place in the list.

        Raises:
            ImageRejected: ``download-failed``, ``download-disallowed`` or ``too-large``.
        """
        if index not in self._images:
            raise _failure(self._failures.get(index, "img2dataset says nothing of it"))
        path, start, size = self._images[index]
        if size > self._max_bytes:
            raise ImageRejected("too-large", f"{size} bytes; at most {self._max_bytes} are read (limits.max_bytes)")
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)


def _failure(message: str) -> ImageRejected:
    if "disallowed" in message:
        return ImageRejected(DISALLOWED, "the server forbids the use of its image for training (X-Robots-Tag)")
    return ImageRejected(FAILED, message[:200] or "without a reason")


def _field(value: Any) -> Any:
    """Return a value as JSON can hold it; None for what is no text and no number."""
    if isinstance(value, str):
        return value[: LONGEST_TEXT + 1]
    if isinstance(value, list):
        return [one[: LONGEST_TEXT + 1] for one in value if isinstance(one, str)]
    return value if isinstance(value, int) or (isinstance(value, float) and abs(value) < float("inf")) else None
