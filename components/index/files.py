"""Where the index step reads and writes: the workdir, the encoding's folder, and a caption set's part of both."""

from __future__ import annotations

from dataclasses import dataclass

from components.dataset.versions import records_of
from components.image.records import captions_prefix
from components.storage.base import Storage

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class IndexFiles:
    """The folders of one dataset.

    Attributes:
        workdir: The storage of all files.
        dataset: The folder ``datasets/<encoding-key>``, which other caption sets share.
        source_id: The source, as ingest named it.
        caption_set: The caption set that was encoded.
    """

    workdir: Storage
    dataset: Storage
    source_id: str
    caption_set: str

    @property
    def captions(self) -> Storage:
        """The captions, and which images caption and clean have rejected."""
        return self.workdir.child(captions_prefix(self.caption_set))

    @property
    def records(self) -> Storage:
        """What the dataset's folder holds of this caption set alone."""
        return records_of(self.dataset, self.caption_set)
