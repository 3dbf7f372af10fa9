"""Find the files of rows in a source, and tell how it stores its images by them."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from components.image.sources import Source, SourceFile
from components.ingest.config import IngestConfig
from components.ingest.imports.address_lists import ENDINGS as LISTS
from components.ingest.imports.splits import split_of
from components.ingest.listing import split_name

PARQUET, HDF5, ADDRESSES = "parquet", "hdf5", "addresses"
ENDINGS = {".parquet": PARQUET, ".arrow": PARQUET, ".h5": HDF5, ".hdf5": HDF5, ".hdf": HDF5}
_CACHE = "cache-"  # what `datasets` keeps of computations beside a data set


class RowFiles(NamedTuple):
    """The files of rows that a source has.

    Attributes:
        layout: What they are: ``parquet``, ``hdf5`` or ``addresses``.
        files: Those to import, by name.
        other_splits: Those of splits that are not asked for.
        left_out: How many others there are, by kind.
    """

    layout: str
    files: tuple[SourceFile, ...]
    other_splits: tuple[SourceFile, ...]
    left_out: dict[str, int]


def endings_of(layout: str) -> tuple[str, ...]:
    """Return the endings of a layout's files."""
    if layout == ADDRESSES:
        return LISTS
    return tuple(ending for ending, of_layout in ENDINGS.items() if of_layout == layout)


def find_row_files(source: Source, config: IngestConfig, workdir_prefix: str | None) -> RowFiles | None:
    """Return the files of rows of a source, if it is they that hold its images; None if it has others.

    Args:
        source: The source.
        config: The settings. By default images and tars come first: rows beside them are usually their metadata.
        workdir_prefix: Beginning of the names of Darkroom's own files, which are ignored.
    """
    if config.layout not in ("auto", PARQUET, HDF5, ADDRESSES):
        return None
    endings = ENDINGS if config.layout == "auto" else endings_of(config.layout)
    files: list[SourceFile] = []
    left_out: Counter[str] = Counter()
    for file in source.list():
        if workdir_prefix is not None and file.name.startswith(workdir_prefix):
            continue
        ending = split_name(file.name)[1]
        if config.layout == "auto" and (ending in config.extensions or ending == ".tar"):
            return None
        if ending not in endings:
            left_out[ending or "no ending"] += 1
        elif file.name.rpartition("/")[2].startswith(_CACHE):
            left_out["cache files of datasets"] += 1
        else:
            files.append(file)
    if not files and config.layout == "auto":
        return None
    layout = config.layout if config.layout != "auto" else ENDINGS[split_name(files[0].name)[1]]
    wanted: list[SourceFile] = []
    others: list[SourceFile] = []
    for file in files:
        split = split_of(file.name)
        if not config.rows.splits or split in config.rows.splits:
            wanted.append(file)
        else:
            others.append(file)
            left_out[f"files of split {split}"] += 1
    return RowFiles(layout, tuple(wanted), tuple(others), dict(left_out))
