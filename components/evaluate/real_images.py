"""The real images that a model is measured against, read from the source again: held out ones, and trained-on ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.dataset.format import read_index
from components.dataset.versions import Dataset
from components.digests import sha256
from components.errors import ImageRejected
from components.evaluate.metric import FeatureExtractor, Features
from components.image.framing import frame
from components.image.records import CaptionRecord, Manifest, captions_prefix, read_captions
from components.image.sources import Source, open_images
from components.progress import Progress
from components.storage.base import Storage

_BATCH = 64


@dataclass(frozen=True)
class RealImages:
    """Features of real images by their extractor, in the order of the images' digests.

    Attributes:
        train: Of images that were trained on.
        held_out: Of images that were not.
        counts: How many there are: ``train``, ``held_out``, and ``skipped``, which are no longer what was ingested.
    """

    train: Mapping[FeatureExtractor, Features]
    held_out: Mapping[FeatureExtractor, Features]
    counts: Mapping[str, int]


def read_real_images(
    workdir: Storage,
    manifest: Manifest,
    dataset: Dataset,
    size: tuple[int, int],
    limit: int,
    extractors: Collection[FeatureExtractor],
    progress: Progress,
) -> RealImages:
    """Return features of real images, cut to size as they were for training; the images themselves are not kept.

    If there are more than ``limit`` images trained on, or held out, those with the smallest digests are taken: a fair
    sample that stays the same. An image that vanished or changed since it was ingested is skipped and counted.

    Args:
        workdir: Where the dataset lies.
        manifest: Says where the source is, and the groups.
        dataset: Says which images are held out.
        size: Height and width in pixels.
        limit: Images to read, at most, of those trained on and of those held out.
        extractors: Compute the features.
        progress: Receives an event for each image.
    """
    storage = workdir.child(f"datasets/{dataset.encoding_key}")
    train, held_out = (_choose(storage, dataset, limit, held_out=held_out) for held_out in (False, True))
    caption_set = workdir.child(captions_prefix(dataset.caption_set))
    records = {
        record.sha256: record
        for group in manifest.groups
        for record in read_captions(caption_set, group)
        if record.sha256 in train or record.sha256 in held_out
    }
    chosen = progress.track(sorted(records), "real images read", len(records))
    readable = _readable(open_images(manifest, workdir), (records[key] for key in chosen), size)
    keys: list[str] = []
    batches: dict[FeatureExtractor, list[NDArray[np.float64]]] = {
        extractor: [extractor([])] for extractor in extractors
    }
    while batch := list(islice(readable, _BATCH)):
        keys += [key for key, _ in batch]
        for extractor, vectors in batches.items():
            vectors.append(extractor([image for _, image in batch]))
    captions = [records[key].captions[0].text for key in keys]
    features = {extractor: Features(np.concatenate(vectors), captions) for extractor, vectors in batches.items()}

    def of(images: set[str]) -> dict[FeatureExtractor, Features]:
        rows = [row for row, key in enumerate(keys) if key in images]
        return {extractor: every.rows(rows) for extractor, every in features.items()}

    counts = {"train": len(train.intersection(keys)), "held_out": len(held_out.intersection(keys))}
    counts["skipped"] = len(train) + len(held_out) - len(keys)
    return RealImages(of(train), of(held_out), counts)


def _choose(storage: Storage, dataset: Dataset, limit: int, *, held_out: bool) -> set[str]:
    """Return the smallest digests of the live images that are held out, or of those that are not."""

    def live() -> Iterator[str]:
        for shard in dataset.shards:
            samples = read_index(storage, shard.name).samples
            yield from (samples[i].image for i in (shard.held_out if held_out else shard.train))

    return set(nsmallest(limit, set(live())))


def _readable(
    source: Source, records: Iterable[CaptionRecord], size: tuple[int, int]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield digest and pixels of each image that is still there, as it was."""
    for record in records:
        try:
            data = source.read(record.name)
            if sha256(data) == record.sha256:
                yield record.sha256, Image.fromarray(frame(data, *size).pixels)
        except ImageRejected:
            continue
