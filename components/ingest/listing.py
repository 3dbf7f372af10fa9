"""Which files of a source are images, which are captions, and which cannot be read at all."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from components.errors import ConfigError
from components.manifest import Rejection, Sidecar
from components.sources import Source, SourceFile
from components.storage import Storage

# Endings of caption files; of several beside one image the first in this order counts.
SIDECARS = (".txt", ".caption")


@dataclass
class Listing:
    """What a source holds.

    Attributes:
        images: Files that are called like images, sorted by name.
        captions: Caption files, by their name without the ending and by the ending.
        rejections: What cannot be read, as the listing already shows.
        others: How many files are none of these.
    """

    images: list[SourceFile] = field(default_factory=list)
    captions: dict[tuple[str, str], SourceFile] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    others: int = 0

    def caption_of(self, image: str) -> Sidecar | None:
        """Return the caption file beside an image: of the same name, with the ending of a caption."""
        for ending in SIDECARS:
            file = self.captions.get((_split(image)[0], ending))
            if file is not None:
                return Sidecar(file.name, file.size, file.modified)
        return None


def list_source(source: Source, extensions: Collection[str], workdir: Storage) -> Listing:
    """List a source; what lies below the workdir is Darkroom's own and passed over.

    Raises:
        ConfigError: Where the workdir is the source.
        DataError: Where the source cannot be listed.
    """
    own = _below(source.url, workdir)
    listing = Listing()
    for file in source.list():
        if own is not None and file.name.startswith(own):
            continue
        stem, ending = _split(file.name)
        if file.refused is not None and (ending in extensions or file.name.endswith("/")):
            listing.rejections.append(Rejection(file.name, "ingest", file.refused.reason, file.refused.detail))
        elif ending in SIDECARS:
            listing.captions[stem, ending] = file
        elif ending in extensions:
            listing.images.append(file)
        else:
            listing.others += 1
    return listing


def _split(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending in lower case."""
    ending = PurePosixPath(name).suffix
    return name.removesuffix(ending), ending.lower()


def _below(source: str, workdir: Storage) -> str | None:
    """Return the names in the source that the workdir's objects begin with, or None where it lies elsewhere."""
    folder = workdir.local_path()
    url = workdir.url if folder is None else os.path.abspath(folder)  # noqa: PTH100 - Path.absolute keeps ".."
    if url == source:
        raise ConfigError(f"{source!a} is both the workdir and the source of images; choose another workdir")
    return url.removeprefix(f"{source}/") + "/" if url.startswith(f"{source}/") else None
