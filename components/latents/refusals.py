"""The images of a group that cannot be encoded, written down as soon as they are found.

So an image that kills a decoding process, or the whole machine, is not tried for ever: a step that is started again
knows what an earlier attempt found. What could pass by itself, such as a file that cannot be read, is tried anew each
time.
"""

from __future__ import annotations

from collections.abc import Iterable

import PIL

from components.digests import short
from components.errors import ImageRejected
from components.image.records import (
    CaptionRecord,
    Rejection,
    latents_rejections_key,
    read_latents_rejections,
    write_rejections,
)
from components.latents.config import LatentsConfig
from components.storage.base import Storage

# Rejections by the place rather than by the image: they may pass, and are tried again each time.
PASSING = ("unreadable", "symlink-outside", "changed")


class Refusals:
    """The refused images of one group; several threads may ask, one adds.

    Args:
        config: Settings; an image that was too much for them is tried again when they change.
        dataset: The dataset's folder.
        group: The group's name.
        records: The group's accepted images.
    """

    def __init__(self, config: LatentsConfig, dataset: Storage, group: str, records: Iterable[CaptionRecord]) -> None:
        self._dataset = dataset
        self._group = group
        self._version = short([PIL.__version__, config.decode_seconds, config.decode_memory_gib])
        accepted = {record.sha256 for record in records}
        self._written = read_latents_rejections(dataset, group)
        self._refused = {
            rejection.sha256: rejection
            for rejection in self._written
            if rejection.sha256 in accepted and rejection.version == self._version
        }

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._refused

    def __len__(self) -> int:
        return len(self._refused)

    @property
    def digests(self) -> list[str]:
        """Digests of the images that are refused for good, sorted."""
        return sorted(sha256 for sha256, rejection in self._refused.items() if sha256 and rejection.version)

    def add(self, record: CaptionRecord, refused: ImageRejected) -> None:
        """Refuse an image, and write it down."""
        version = "" if refused.reason in PASSING else self._version
        rejection = Rejection(record.name, "latents", refused.reason, refused.detail, record.sha256, version)
        self._refused[record.sha256] = rejection
        self.write()

    def write(self) -> None:
        """Write down what is refused, where it is not written already."""
        refused = list(self._refused.values())
        if sorted(refused, key=str) != sorted(self._written, key=str):
            write_rejections(self._dataset, latents_rejections_key(self._group), refused)
            self._written = refused
