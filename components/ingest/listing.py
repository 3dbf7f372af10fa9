"""Which files of a source are images, which are captions and metadata, and which cannot be read at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from components.digests import canonical_json, short
from components.errors import ConfigError, DataError
from components.image.records import Rejection
from components.image.sources import Source, SourceFile
from components.ingest.config import IngestConfig
from components.ingest.metadata import NAMES
from components.storage.base import Storage

# Kinds of file.
IMAGE, CAPTION, JSON, METADATA, ARCHIVE = "image", "caption", "json", "metadata", "archive"

# Endings of caption files; of several beside one image the first in this order counts.
CAPTIONS = (".txt", ".caption")

# Which files are read in each layout besides captions, which the caption step reads.
READ = {"folder": (IMAGE, JSON), "imagefolder": (IMAGE, JSON), "webdataset": (ARCHIVE,)}


class Listed(NamedTuple):
    """One file that matters.

    Attributes:
        name: Its name in the source.
        kind: What it is, by its name.
        stem: Its name without the ending, which files that belong together share.
        bytes: Its size.
        tag: Changes when the file does; empty where that cannot be told.
    """

    name: str
    kind: str
    stem: str
    bytes: int
    tag: str


@dataclass
class Listing:
    """Sorts a source's files by what they are, one by one, and adds them up.

    Args:
        config: Which are images.
        own: What the names of Darkroom's own files begin with, where they lie in the source; they are passed over.

    Attributes:
        others: How many files are nothing of interest.
        lasting: Whether everything would be found as it is again.
    """

    config: IngestConfig
    own: str | None
    others: int = 0
    lasting: bool = True

    def __post_init__(self) -> None:
        settings = self.config.model_dump(mode="json", exclude={"readers"})
        self._sum = hashlib.sha256(canonical_json(settings))
        # An archive is read with these in mind; what is remembered of it holds as long as they do.
        self._reading = short([self.config.extensions, self.config.limits.max_bytes])

    @property
    def digest(self) -> str:
        """What changes when any file does, or a setting; empty where something may change by itself."""
        return self._sum.hexdigest() if self.lasting else ""

    def sort(self, files: Iterator[SourceFile]) -> Iterator[Listed | Rejection]:
        """Yield the files that matter."""
        for file in files:
            if self.own is not None and file.name.startswith(self.own):
                continue
            stem, ending = split_name(file.name)
            kind = _kind(file.name, ending, self.config.extensions)
            if file.refused is not None and (kind in (IMAGE, METADATA, ARCHIVE) or file.name.endswith("/")):
                self.lasting = False
                yield Rejection(file.name, "ingest", file.refused.reason, file.refused.detail)
                continue
            if kind is None:
                self.others += 1
                continue
            # A caption file that cannot be read stays: the caption step says so.
            self._sum.update(f"{file.name}\0{file.size}\0{file.modified}\n".encode("utf-8", "surrogatepass"))
            self.lasting = self.lasting and bool(file.modified)
            yield Listed(file.name, kind, stem, file.size, self._tag(kind, file))

    def _tag(self, kind: str, file: SourceFile) -> str:
        if kind != ARCHIVE or not file.modified:
            return file.modified
        return f"{file.modified}-{self._reading}"


def choose_layout(config: IngestConfig, source: Source, kinds: Collection[str], others: int) -> str:
    """Return how the images lie in a source, by the kinds of file that there are.

    Raises:
        DataError: Where nothing there can hold an image.
    """
    layout = config.layout
    if layout == "auto":
        # Files that one can see come first: a tar beside them is as a rule what they were unpacked from.
        layout = "webdataset" if IMAGE not in kinds and ARCHIVE in kinds else "folder"
        layout = "imagefolder" if IMAGE in kinds and METADATA in kinds else layout
    if layout == "imagefolder" and METADATA not in kinds:
        raise DataError(
            f"source {source.url!a} has no {' or '.join(NAMES)}, which an imagefolder has; "
            "add one, or set ingest.layout to folder"
        )
    if not set(READ[layout]) - {JSON} & set(kinds):
        endings = ".tar" if layout == "webdataset" else ", ".join(config.extensions)
        raise DataError(
            f"source {source.url!a} holds no images (files of other kinds: {others}); expected names ending in "
            f"{endings}; check ingest.source, ingest.layout and ingest.extensions"
        )
    return layout


def below_source(source: str, workdir: Storage) -> str | None:
    """Return the names in the source that the workdir's objects begin with, or None where it lies elsewhere.

    Raises:
        ConfigError: Where the workdir is the source.
    """
    folder = workdir.local_path()
    url = workdir.url if folder is None else os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps ".."
    if url == source:
        raise ConfigError(f"{source!a} is both the workdir and the source of images; choose another workdir")
    return url.removeprefix(f"{source}/") + "/" if url.startswith(f"{source}/") else None


def _kind(name: str, ending: str, extensions: Collection[str]) -> str | None:
    if ending in extensions:
        return IMAGE
    if ending in CAPTIONS:
        return CAPTION
    if name.rpartition("/")[2] in NAMES:
        return METADATA
    return {".json": JSON, ".tar": ARCHIVE}.get(ending)


def split_name(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending in lower case."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - names are strings here, and many
    return stem, ending.lower()
