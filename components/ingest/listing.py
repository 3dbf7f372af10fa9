"""Sort a source's files into images, captions, metadata and archives, and find out how the images are stored."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from components.digests import canonical_json, short
from components.errors import ConfigError, DataError
from components.image.records import Rejection
from components.image.sources import BAD_NAME, Source, SourceFile
from components.ingest.config import IngestConfig
from components.ingest.file_cache import FORMAT
from components.ingest.metadata_files import FILE_NAMES
from components.storage.base import Storage

# Kinds of file.
IMAGE, CAPTION, JSON, METADATA, ARCHIVE = "image", "caption", "json", "metadata", "archive"

# Endings of caption files; if an image has several, the first in this order counts.
CAPTION_ENDINGS = (".txt", ".caption")

# Which kinds of file ingest reads in each layout; caption files are read by the caption step.
READ_KINDS = {"folder": (IMAGE, JSON), "imagefolder": (IMAGE, JSON), "webdataset": (ARCHIVE,)}


class ListedFile(NamedTuple):
    """A file of a kind that ingest uses.

    Attributes:
        name: Its name in the source.
        kind: What its name says that it is.
        stem: Its name without the ending; files that belong together have the same.
        bytes: Its size.
        tag: Changes when the file does; empty if the storage has no such tag.
    """

    name: str
    kind: str
    stem: str
    bytes: int
    tag: str


@dataclass
class Listing:
    """Sorts a source's files by kind, one by one, and computes a digest of them all.

    Args:
        config: The settings; they say which names are those of images.
        workdir_prefix: Beginning of the names of Darkroom's own files if the workdir is in the source; such files are
            ignored.

    Attributes:
        other_files: How many files are of no kind that ingest uses.
        stable: Whether the same source would be read with the same result again. It is not if a file could not be read,
            or has no tag.
    """

    config: IngestConfig
    workdir_prefix: str | None
    other_files: int = 0
    stable: bool = True

    def __post_init__(self) -> None:
        settings = self.config.model_dump(mode="json", exclude={"readers"})
        self._digest = hashlib.sha256(canonical_json([FORMAT, settings]))
        # These settings decide what is read from a file: the cache of it holds only while they stay the same.
        fields = self.config.caption_fields
        archive = [self.config.extensions, self.config.limits.max_bytes, fields]
        self._settings_by_kind = {ARCHIVE: short(archive), JSON: short(fields)}

    @property
    def digest(self) -> str:
        """Changes when a file or a setting does; empty if the listing is not stable."""
        return self._digest.hexdigest() if self.stable else ""

    def select(self, files: Iterator[SourceFile]) -> Iterator[ListedFile | Rejection]:
        """Yield the files that ingest uses, and rejections of those that cannot be read."""
        for file in files:
            if self.workdir_prefix is not None and file.name.startswith(self.workdir_prefix):
                continue
            stem, ending = split_name(file.name)
            kind = _kind(file.name, ending, self.config.extensions)
            is_bad_name = file.rejection is not None and file.rejection.reason == BAD_NAME
            if file.rejection is not None and (kind in (IMAGE, METADATA, ARCHIVE) or file.name.endswith("/")):
                self._add(file)
                self.stable = self.stable and is_bad_name
                yield Rejection(file.name, "ingest", file.rejection.reason, file.rejection.detail)
                continue
            if kind is None or is_bad_name:
                self.other_files += 1
                continue
            # A caption file that cannot be read is kept: the caption step rejects its image.
            self._add(file)
            self.stable = self.stable and bool(file.modified)
            yield ListedFile(file.name, kind, stem, file.size, self._tag(kind, file))

    def _add(self, file: SourceFile) -> None:
        self._digest.update(f"{file.name}\0{file.size}\0{file.modified}\n".encode("utf-8", "surrogatepass"))

    def _tag(self, kind: str, file: SourceFile) -> str:
        if kind not in self._settings_by_kind or not file.modified:
            return file.modified
        return f"{file.modified}-{self._settings_by_kind[kind]}"


def choose_layout(config: IngestConfig, source: Source, kinds: Collection[str], other_files: int) -> str:
    """Return the layout of a source: the setting, or if that is ``auto`` the one that its kinds of file suggest.

    Raises:
        DataError: If the source has no file that can hold an image, or none that the layout needs.
    """
    layout = config.layout
    if layout == "auto":
        # Image files come first: a tar beside them is usually what they were unpacked from.
        layout = "webdataset" if IMAGE not in kinds and ARCHIVE in kinds else "folder"
        layout = "imagefolder" if IMAGE in kinds and METADATA in kinds else layout
    if layout == "imagefolder" and METADATA not in kinds:
        raise DataError(
            f"source {source.url!a} has no {' or '.join(FILE_NAMES)}, which layout imagefolder needs; "
            "add one, or set ingest.layout to folder"
        )
    if not set(READ_KINDS[layout]) - {JSON} & set(kinds):
        endings = ".tar" if layout == "webdataset" else ", ".join(config.extensions)
        raise DataError(
            f"source {source.url!a} holds no images (files of other kinds: {other_files}); expected names ending in "
            f"{endings}; check ingest.source, ingest.layout and ingest.extensions"
        )
    return layout


def workdir_prefix(source_url: str, workdir: Storage) -> str | None:
    """Return what the names of the workdir's files begin with in the source, or None if it is not in the source.

    Raises:
        ConfigError: If the workdir is the source.
    """
    folder = workdir.local_path()
    url = workdir.url if folder is None else os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps ".."
    if url == source_url:
        raise ConfigError(f"{source_url!a} is both the workdir and the source of images; choose another workdir")
    return url.removeprefix(f"{source_url}/") + "/" if url.startswith(f"{source_url}/") else None


def _kind(name: str, ending: str, extensions: Collection[str]) -> str | None:
    if ending in extensions:
        return IMAGE
    if ending in CAPTION_ENDINGS:
        return CAPTION
    if name.rpartition("/")[2] in FILE_NAMES:
        return METADATA
    return {".json": JSON, ".tar": ARCHIVE}.get(ending)


def split_name(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending in lower case."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - names are strings here, and many
    return stem, ending.lower()
