"""The images of a group that cannot be encoded, each recorded as soon as it is rejected.

So an image that kills a decoding process, or the whole pod, is not tried for ever: the next attempt reads what this
one recorded. If the reason may pass by itself, as when a file cannot be read, each attempt tries the image again.
"""

from __future__ import annotations

from collections.abc import Iterable

import PIL

from components.digests import short
from components.errors import ImageRejected
from components.image.optional_formats import DECODER_MISSING
from components.image.records import (
    CaptionRecord,
    Rejection,
    latents_rejections_key,
    read_latents_rejections,
    write_rejections,
)
from components.latents.config import LatentsConfig
from components.storage.base import Storage

# Reasons that have to do with the source, or with what is installed here, rather than with the image. They may pass, so
# such images are tried again.
PASSING = ("unreadable", "symlink-outside", "changed", DECODER_MISSING)


class RejectedImages:
    """The rejected images of one group. Several threads may ask whether an image is among them; one adds.

    Args:
        config: Settings; an image that was rejected because of them is tried again when they change.
        records: The records of the caption set that is encoded.
        group: The group's name.
        images: The group's accepted images.
    """

    def __init__(self, config: LatentsConfig, records: Storage, group: str, images: Iterable[CaptionRecord]) -> None:
        self._records = records
        self._group = group
        self._version = short([PIL.__version__, config.decode.seconds, config.decode.memory_gib])
        accepted = {image.sha256 for image in images}
        self._recorded = read_latents_rejections(records, group)
        self._rejections = {
            rejection.sha256: rejection
            for rejection in self._recorded
            if rejection.sha256 in accepted and rejection.version == self._version
        }

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._rejections

    def __len__(self) -> int:
        return len(self._rejections)

    @property
    def permanent(self) -> list[str]:
        """Digests of the images that are not tried again, sorted."""
        return sorted(sha256 for sha256, rejection in self._rejections.items() if sha256 and rejection.version)

    def add(self, record: CaptionRecord, error: ImageRejected) -> None:
        """Reject an image, and record why."""
        version = "" if error.reason in PASSING else self._version
        rejection = Rejection(record.name, "latents", error.reason, error.detail, record.sha256, version)
        self._rejections[record.sha256] = rejection
        self.write()

    def write(self) -> None:
        """Write the rejections, if they differ from the recorded ones."""
        rejections = list(self._rejections.values())
        if sorted(rejections, key=str) != sorted(self._recorded, key=str):
            write_rejections(self._records, latents_rejections_key(self._group), rejections)
            self._recorded = rejections
