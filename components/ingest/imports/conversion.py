"""Convert some rows of one file into one tar."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.digests import digest_file
from components.errors import ConfigError, ImageRejected
from components.image.records import Rejection
from components.image.sources import Source, SourceFile
from components.ingest.config import IngestConfig
from components.ingest.imports.row_files import ADDRESSES, ENDINGS, HDF5, PARQUET
from components.ingest.imports.rows import ImageRow, Opened
from components.ingest.imports.tar_writer import TarWriter
from components.ingest.listing import split_name
from components.ingest.parallel_reader import TRANSIENT_REASONS

TAR_BYTES = 256 << 20
TAR_ROWS = 50_000  # rows without an image, too: each rejection takes memory

_MODULES = {PARQUET: "pyarrow", HDF5: "h5py", ADDRESSES: "pyarrow"}


@dataclass(frozen=True)
class Part:
    """What some rows of a file have become.

    Attributes:
        next: The row behind them; None if there is no more.
        rejections: Rows, and parts of rows, that could not be used; and the file, if the rest of it cannot be read.
        stable: Whether the same rows would give the same again. They do not if a file that they name could not be read.
        images: Images in the tar; 0 if there is no tar.
        bytes: Size of the tar.
        sha256: Digest of the tar.
    """

    next: int | None
    rejections: tuple[Rejection, ...] = ()
    stable: bool = True
    images: int = 0
    bytes: int = 0
    sha256: str = ""

    def counts(self) -> dict[str, Any]:
        """Return all but the rejections, as JSON."""
        return {name: getattr(self, name) for name in ("next", "stable", "images", "bytes", "sha256")}


def rejection_values(rejection: Rejection) -> dict[str, Any]:
    """Return what ingest knows of a rejection, as JSON."""
    return {name: getattr(rejection, name) for name in ("name", "step", "reason", "detail")}


def convert(
    source: Source,
    file: SourceFile,
    config: IngestConfig,
    start: int,
    path: Path,
    go_on: Callable[[], object] = lambda: None,
) -> Part:
    """Write the rows of a file from ``start`` on into a tar, until that is large enough or the file ends.

    Args:
        source: Where the file is.
        file: The file.
        config: Which column is the image, and limits.
        start: The first row.
        path: The tar; without images it is not to be used.
        go_on: Called when some rows have been read.

    Raises:
        ConfigError: If the package that reads such files is not installed.
        StorageError: If the source fails.
    """
    rejections: list[Rejection] = []
    following: int | None = start
    with path.open("wb") as target:
        writer = TarWriter(target)
        try:
            with _open(source, config, file) as rows, closing(rows.batches(start)) as batches:  # type: ignore[type-var]
                following = _write(batches, writer, file.name, rejections, start, go_on)
        except ImageRejected as error:
            kept = f"; its images before that are kept: {start + writer.images}" if start + writer.images else ""
            rejections.append(Rejection(file.name, "ingest", error.reason, error.detail + kept))
            following = None
        writer.close()
    stable = not any(rejection.reason in TRANSIENT_REASONS for rejection in rejections)
    if not writer.images:
        return Part(following, tuple(rejections), stable)
    return Part(following, tuple(rejections), stable, writer.images, path.stat().st_size, digest_file(path))


def _write(
    batches: Iterator[Iterable[ImageRow]],
    writer: TarWriter,
    name: str,
    rejections: list[Rejection],
    start: int,
    go_on: Callable[[], object],
) -> int | None:
    """Write batches until there are enough; return the row behind them, or None if there is no more."""
    following = start
    for batch in batches:
        go_on()
        for row in batch:
            rejections += (Rejection(f"{name}:{row.number}", "ingest", one.reason, one.detail) for one in row.problems)
            if row.image is not None:
                writer.add(row)
            following = row.number + 1
        if writer.written >= TAR_BYTES or following - start >= TAR_ROWS:
            return following
    return None


def _open(source: Source, config: IngestConfig, file: SourceFile) -> Opened:
    """Open a file with the package that can read it."""
    layout = ADDRESSES if config.layout == ADDRESSES else ENDINGS[split_name(file.name)[1]]
    if importlib.util.find_spec(_MODULES[layout]) is None:
        raise ConfigError(
            f"{file.name!a} needs a package that is not installed: pip install {_MODULES[layout]}, or all that read "
            "files of rows: pip install 'darkroom[rows]'"
        )
    # Imported here: most sources need neither package.
    if layout == HDF5:
        from components.ingest.imports.hdf5_rows import open_hdf5

        return open_hdf5(source, config, file.name, file.size)
    if layout == ADDRESSES:
        from components.ingest.imports.address_rows import open_addresses

        return open_addresses(source, config, file.name, file.size)
    from components.ingest.imports.arrow_rows import open_arrow

    return open_arrow(source, config, file.name, file.size)
