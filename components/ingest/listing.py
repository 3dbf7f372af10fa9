"""Sort a source's files into images, captions, metadata and archives, and find out how the images are stored."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from components.digests import canonical_json, short
from components.errors import ConfigError, DataError
from components.image.optional_formats import installed
from components.image.records import Rejection
from components.image.sources import BAD_NAME, Source, SourceFile
from components.ingest.config import IngestConfig
from components.ingest.file_cache import FORMAT
from components.ingest.metadata_files import FILE_NAMES
from components.storage.base import Storage

# Kinds of file.
IMAGE, MASK, CAPTION, JSON, METADATA, ARCHIVE = "image", "mask", "caption", "json", "metadata", "archive"

# Endings of caption files; if an image has several, the first in this order counts.
CAPTION_ENDINGS = (".txt", ".caption")

# Of the endings of other files, so many are counted one by one; a longer one is cut.
MOST_ENDINGS, LONGEST_ENDING, OTHER_ENDINGS = 1000, 20, "others"

# Which kinds of file ingest reads in each layout; caption files are read by the caption step.
READ_KINDS = {"folder": (IMAGE, JSON), "imagefolder": (IMAGE, JSON), "webdataset": (ARCHIVE,)}
# Files of rows are imported into tars.
READ_KINDS |= dict.fromkeys(("parquet", "hdf5", "addresses"), (ARCHIVE,))


class ListedFile(NamedTuple):
    """A file of a kind that ingest uses.

    Attributes:
        name: Its name in the source.
        kind: What its name says that it is.
        stem: The name without ending of the image that it is or would belong to.
        bytes: Its size.
        tag: Changes when the file does; empty if the storage has no such tag.
        rank: Of several files of one kind beside an image the one with the lowest counts, of equal ones the last.
    """

    name: str
    kind: str
    stem: str
    bytes: int
    tag: str
    rank: int = 0


@dataclass
class Listing:
    """Sorts a source's files by kind, one by one, and computes a digest of them all.

    Args:
        config: The settings; they say which names are those of images.
        workdir_prefix: Beginning of the names of Darkroom's own files if the workdir is in the source; such files are
            ignored.

    Attributes:
        other_files: How many files are of no kind that ingest uses, by the endings of their names.
        stable: Whether the same source would be read with the same result again. It is not if a file could not be read,
            or has no tag.
    """

    config: IngestConfig
    workdir_prefix: str | None
    other_files: Counter[str] = field(default_factory=Counter)
    stable: bool = True

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256(canonical_json([FORMAT, installed(), self.config.outcome]))
        # These settings decide what is read from a file: the cache of it holds only while they stay the same.
        fields = self.config.caption_fields
        archive = [self.config.extensions, self.config.mask_endings, self.config.limits.max_bytes, fields]
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
            if kind == IMAGE and (image := image_of_mask(stem, self.config.mask_endings)) is not None:
                kind, stem = MASK, image
            is_bad_name = file.rejection is not None and file.rejection.reason == BAD_NAME
            if file.rejection is not None and (kind in (IMAGE, MASK, METADATA, ARCHIVE) or file.name.endswith("/")):
                self._add(file)
                self.stable = self.stable and is_bad_name
                yield Rejection(file.name, "ingest", file.rejection.reason, file.rejection.detail)
                continue
            if kind is None or is_bad_name:
                count_ending(self.other_files, ending)
                continue
            # A caption file that cannot be read is kept: the caption step rejects its image.
            self._add(file)
            self.stable = self.stable and bool(file.modified)
            rank = CAPTION_ENDINGS.index(ending) if kind == CAPTION else 0
            yield ListedFile(file.name, kind, stem, file.size, self._tag(kind, file), rank)

    def include(self, digest: str, other_files: Mapping[str, int], *, stable: bool) -> None:
        """Include what was found before the listing, when files were imported."""
        self._digest.update(digest.encode())
        self.other_files.update(other_files)
        self.stable &= stable

    def _add(self, file: SourceFile) -> None:
        self._digest.update(f"{file.name}\0{file.size}\0{file.modified}\n".encode("utf-8", "surrogatepass"))

    def _tag(self, kind: str, file: SourceFile) -> str:
        if kind not in self._settings_by_kind or not file.modified:
            return file.modified
        return f"{file.modified}-{self._settings_by_kind[kind]}"


def choose_layout(config: IngestConfig, source: Source, kinds: Collection[str], other_files: Counter[str]) -> str:
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
        others = ", ".join(f"{ending or 'no ending'} {count}" for ending, count in other_files.most_common(5))
        raise DataError(
            f"source {source.url!a} holds no images (other files: {others or 'none'}); expected names ending in "
            f"{endings}; check ingest.source, ingest.layout and ingest.extensions (a list of addresses needs "
            "ingest.layout=addresses)"
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


def count_ending(counter: Counter[str], ending: str) -> None:
    """Count a file by its ending; names may be hostile, so that endings without end are not all kept."""
    ending = ending[:LONGEST_ENDING]
    counter[ending if ending in counter or len(counter) < MOST_ENDINGS else OTHER_ENDINGS] += 1


def image_of_mask(stem: str, mask_endings: Collection[str]) -> str | None:
    """Return the name, without ending, of the image whose mask a file would be by its own name; None for no mask."""
    lower = stem.lower()
    for ending in mask_endings:
        if lower.endswith(ending) and not stem[: -len(ending)].endswith("/") and len(stem) > len(ending):
            return stem[: -len(ending)]
    return None


def image_of_caption(stem: str, extensions: Collection[str]) -> str:
    """Return the name, without ending, of the image that a file belongs to if it is named after all of its name.

    So ``a.jpg.txt`` belongs to ``a.jpg``, if there is no ``a.jpg.png`` that it would lie beside.
    """
    shorter, ending = split_name(stem)
    return shorter if ending in extensions else stem


def split_name(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending in lower case."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - names are strings here, and many
    return stem, ending.lower()
