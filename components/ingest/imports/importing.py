"""Import files of rows: their images become tars in the workdir, once, and are read from there by every step.

Rows of Parquet, Arrow and HDF5 files cannot be read one by one at any place at little cost, and the steps read images
in the order of their contents. So each file is read once from front to back. It becomes tars of about `TAR_BYTES`, with
the images' bytes as they are:

    imports/<source>/<file>/<settings>/<first row>.tar    images, and JSON with the other columns beside them
    imports/<source>/<file>/<settings>/<first row>.jsonl  what the tar was made of, and which rows were rejected

The second is written last, and has the file's size and tag: an unchanged file is imported once, a changed one anew,
and what belongs to no file any more is removed. A run that is killed loses at most the tar that it was writing, and the
next one writes the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.digests import digest, short
from components.errors import DamagedFile, DataError, NotFound
from components.image.records import Rejection
from components.image.rejections import commonest, explain
from components.image.sources import Source, SourceFile, StorageSource
from components.ingest.config import IngestConfig
from components.ingest.imports.conversion import Part, rejection_values
from components.ingest.imports.conversion_process import Convert, open_converter
from components.ingest.imports.row_files import ADDRESSES, RowFiles, endings_of
from components.progress import Progress
from components.storage.base import Storage
from components.storage.scratch import scratch_folder

FORMAT = 1
_LONGEST_NAME = 60  # characters of a file's name in a key


class _Kept(NamedTuple):
    """A part that the workdir holds: the key of its tar without the ending, and what it was made of."""

    key: str
    part: Part


class ImportedSource(Source):
    """The tars that the files of a source were imported into. Its id is that of the source.

    Args:
        url: The source's address.
        workdir: Where the tars are.
        layout: What the source's files are.
        kept: The parts.
        left_out: How many files were not read, by kind.

    Attributes:
        imports: The folder of the tars, below the workdir.
        layout: What the source's files are.
        rejections: Files, rows and parts of rows that could not be used.
        left_out: How many files were not read, by kind.
        stable: Whether importing the same again would give the same.
        digest: Changes when what is imported or rejected does.
    """

    def __init__(
        self, url: str, workdir: Storage, layout: str, kept: Sequence[_Kept], left_out: dict[str, int]
    ) -> None:
        self.url = url
        self.imports = imports_prefix(url)
        self.layout = layout
        self.left_out = left_out
        self.rejections = [rejection for one in kept for rejection in one.part.rejections]
        self.stable = all(one.part.stable for one in kept)
        self.digest = digest([[one.key, one.part.counts(), one.part.next] for one in kept])
        self._tars = StorageSource(workdir.child(self.imports))
        self._files = [SourceFile(f"{one.key}.tar", one.part.bytes, one.part.sha256) for one in kept if one.part.images]

    def list(self) -> Iterator[SourceFile]:
        """Yield the tars."""
        return iter(sorted(self._files))

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        return self._tars.read(name, start, length)


def imports_prefix(url: str) -> str:
    """Return the folder of a source's imported files, below the workdir."""
    return f"imports/{short(url)}"


def import_files(
    source: Source, files: RowFiles, config: IngestConfig, workdir: Storage, progress: Progress
) -> ImportedSource:
    """Import the files of a source that are new or changed, and return what then is there.

    Raises:
        DataError: If none of the rows has an image.
        ConfigError: If a package that reads such files is not installed.
        StorageError: If the storage fails; a retry may help.
    """
    if not files.files:
        endings = " or ".join(endings_of(files.layout))
        splits = f" of split {' or '.join(config.rows.splits)}" if config.rows.splits else ""
        raise DataError(
            f"source {source.url!a} has no {endings} files{splits}{_listed(files.left_out)}; check ingest.source, "
            "ingest.layout and ingest.rows.splits"
        )
    folder = workdir.child(imports_prefix(source.url))
    kept: list[_Kept] = []
    with open_converter(config.rows, files.layout) as convert:
        for file in progress.track(files.files, "files imported", len(files.files)):
            kept += _import_file(source, file, config, folder, convert)
    imported = ImportedSource(source.url, workdir, files.layout, kept, files.left_out)
    if not any(one.part.images for one in kept):
        reasons = explain(commonest(imported.rejections))
        raise DataError(f"source {source.url!a}: no image can be used{_listed(files.left_out)}\n{reasons}")
    _remove_others(folder, files, {f"{one.key}{ending}" for one in kept for ending in (".tar", ".jsonl")}, config)
    return imported


def _listed(left_out: Mapping[str, int]) -> str:
    others = ", ".join(f"{number} {kind}" for kind, number in sorted(left_out.items()))
    return f" (not read: {others})" if others else ""


def _import_file(
    source: Source, file: SourceFile, config: IngestConfig, folder: Storage, convert: Convert
) -> Iterator[_Kept]:
    """Yield the parts of a file, those first that an earlier run has made."""
    if file.rejection is not None:
        problem = Rejection(file.name, "ingest", file.rejection.reason, file.rejection.detail)
        yield _Kept(_folder(file), Part(None, (problem,), stable=False))
        return
    start: int | None = 0
    while start is not None:
        key = f"{_folder(file)}/{_settings(config)}/{start:012d}"
        part = _read_part(folder, key, file)
        if part is None:
            part = _make_part(convert, source, file, config, start, folder, key)
        yield _Kept(key, part)
        start = part.next


def _make_part(
    convert: Convert, source: Source, file: SourceFile, config: IngestConfig, start: int, folder: Storage, key: str
) -> Part:
    with scratch_folder("import") as scratch:
        path = Path(scratch) / "part.tar"
        part = convert(source, file, config, start, path)
        if part.images:
            folder.upload(f"{key}.tar", path)
    if part.stable:
        lines = [{**_made_of(file), **part.counts()}, *(rejection_values(one) for one in part.rejections)]
        folder.write_records(f"{key}.jsonl", lines)
    return part


def _read_part(folder: Storage, key: str, file: SourceFile) -> Part | None:
    """Return a part that an earlier run has made; None if there is none, it is not whole, or the file has changed."""
    try:
        lines = folder.read_records(f"{key}.jsonl")
        counts = next(lines, {})
        if {name: counts.pop(name, None) for name in _made_of(file)} != _made_of(file):
            return None
        part = Part(rejections=tuple(Rejection(**values) for values in lines), **counts)
        return part if not part.images or folder.entry(f"{key}.tar").size == part.bytes else None
    except (NotFound, DamagedFile, TypeError):
        return None


def _made_of(file: SourceFile) -> dict[str, Any]:
    return {"format": FORMAT, "size": file.size, "modified": file.modified}


def _folder(file: SourceFile) -> str:
    """Return the folder of a file: its name, as far as a key may hold it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", file.name).strip(".")[-_LONGEST_NAME:].strip("._") or "file"
    return f"{name}-{short(file.name, 8)}"


def _settings(config: IngestConfig) -> str:
    """Return the digest of the settings that decide what is imported from a file."""
    rows = config.rows.model_dump(mode="json", exclude={"splits", "isolated", "memory_gib", "seconds"})
    if config.layout == ADDRESSES:
        rows |= config.addresses.model_dump(mode="json", include={"column", "allow_private", "timeout", "retries"})
    return short([rows, config.limits.max_bytes, config.caption_fields], 12)


def _remove_others(folder: Storage, files: RowFiles, current: set[str], config: IngestConfig) -> None:
    """Remove what is of no file, or of a file's earlier version; another run may be reading what has other settings."""
    listed = {_folder(file) for file in (*files.files, *files.other_splits)}
    settings = _settings(config)
    for entry in list(folder.list()):
        of_file, of_settings, *_ = [*entry.key.split("/"), ""]
        is_others = of_file in listed and of_settings != settings
        if entry.key not in current and not is_others:
            folder.delete(entry.key)
