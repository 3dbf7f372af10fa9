"""The real images that a model is measured against, read from the source again: held out ones, and trained-on ones."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

import numpy as np
from PIL import Image

from components.dataset.format import read_index
from components.dataset.versions import Dataset
from components.digests import sha256
from components.errors import ImageRejected
from components.evaluate.seeing import Eye, Seen
from components.image.framing import frame
from components.image.records import CaptionRecord, Manifest, read_captions
from components.image.sources import Source, open_source
from components.progress import Progress
from components.storage.base import Storage

_BATCH = 64


@dataclass(frozen=True)
class Side:
    """What was seen of the images of one side, and their captions, in the order of their digests."""

    seen: Seen
    captions: Sequence[str]

    def captioned(self, captions: Container[str]) -> Side:
        """Return the images that have one of some captions."""
        rows = [row for row, caption in enumerate(self.captions) if caption in captions]
        return Side(self.seen.rows(rows), [self.captions[row] for row in rows])


@dataclass(frozen=True)
class RealImages:
    """Both sides, and how many images are no longer what was ingested."""

    train: Side
    held_out: Side
    skipped: int


def read_real_images(
    workdir: Storage,
    manifest: Manifest,
    dataset: Dataset,
    size: tuple[int, int],
    most: int,
    eye: Eye,
    progress: Progress,
) -> RealImages:
    """Look at real images, cut to size as they were for training; the images themselves are not kept.

    Of a side with more than ``most`` images, those with the smallest digests are taken: a fair sample that stays
    the same. An image that vanished or changed since it was ingested is skipped and counted.

    Args:
        workdir: Where the dataset lies.
        manifest: Says where the source is, and the groups.
        dataset: Says which images are held out.
        size: Height and width in pixels.
        most: Images to look at of each side.
        eye: Looks at them.
        progress: Told of each image.
    """
    storage = workdir.child(f"datasets/{dataset.encoding_key}")
    train, held_out = (_choose(storage, dataset, most, held_out=held_out) for held_out in (False, True))
    records = {
        record.sha256: record
        for group in manifest.groups
        for record in read_captions(storage, group)
        if record.sha256 in train or record.sha256 in held_out
    }
    chosen = progress.track(sorted(records), "real images read", len(records))
    readable = _readable(open_source(manifest.source), (records[key] for key in chosen), size)
    keys: list[str] = []
    parts = [eye.look([])]
    while batch := list(islice(readable, _BATCH)):
        keys += [key for key, _ in batch]
        parts.append(eye.look([image for _, image in batch]))
    seen = Seen(*map(np.concatenate, zip(*parts, strict=True)))

    def side(members: set[str]) -> Side:
        rows = [row for row, key in enumerate(keys) if key in members]
        return Side(seen.rows(rows), [records[keys[row]].captions[0].text for row in rows])

    return RealImages(side(train), side(held_out), skipped=len(train) + len(held_out) - len(keys))


def _choose(storage: Storage, dataset: Dataset, most: int, *, held_out: bool) -> set[str]:
    """Return the smallest digests of the live images of one side."""

    def live() -> Iterator[str]:
        for shard in dataset.shards:
            samples = read_index(storage, shard.name).samples
            yield from (samples[i].image for i in (shard.held_out if held_out else shard.train))

    return set(nsmallest(most, set(live())))


def _readable(
    source: Source, records: Iterable[CaptionRecord], size: tuple[int, int]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield digest and picture of each image that is still there, as it was."""
    for record in records:
        try:
            data = source.read(record.name)
            if sha256(data) == record.sha256:
                yield record.sha256, Image.fromarray(frame(data, *size).pixels)
        except ImageRejected:
            continue
