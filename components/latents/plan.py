"""Which samples of a group exist already, and which go into which new shard: names in, names out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from components.dataset.format import SampleId, sample_ids, sample_key, shard_name
from components.image.buckets import Bucket, Buckets
from components.image.records import Caption, CaptionRecord


class PlannedSample(NamedTuple):
    """One sample to encode.

    Attributes:
        key: Its key in the shard.
        id: What identifies it in every version of the dataset.
        caption: Its caption.
    """

    key: str
    id: SampleId
    caption: Caption


@dataclass(frozen=True)
class PlannedImage:
    """An image to decode, and the samples to make of it."""

    record: CaptionRecord
    samples: tuple[PlannedSample, ...]

    @property
    def variants(self) -> tuple[int, ...]:
        """The variants that its samples show, ascending."""
        return tuple(sorted({sample.id.variant for sample in self.samples}))


@dataclass(frozen=True)
class NewShard:
    """A shard to make: its images in order, each with all its samples."""

    bucket: Bucket
    images: tuple[PlannedImage, ...]

    @property
    def name(self) -> str:
        """Its name: a digest of all that decides what `components.latents.samples.describe` says of its samples."""
        samples = (
            (sample.key, sample.id, sample.caption.by, image.record.license, image.record.source)
            for image in self.images
            for sample in image.samples
        )
        return shard_name(self.bucket, samples)

    def without(self, rejected: Container[str]) -> NewShard:
        """Return the shard without the images that have these digests."""
        return NewShard(self.bucket, tuple(image for image in self.images if image.record.sha256 not in rejected))


@dataclass(frozen=True)
class EncodingPlan:
    """What to encode for a group.

    Attributes:
        reused: Names of the finished shards that hold live samples of the group, sorted.
        new: Shards to make.
    """

    reused: tuple[str, ...]
    new: tuple[NewShard, ...]


def plan(
    records: Iterable[CaptionRecord],
    encoded: Mapping[SampleId, str],
    buckets: Buckets,
    variants: int,
    shard_samples: int,
) -> EncodingPlan:
    """Plan a group's shards. The plan depends on records and settings, never on their order or on earlier attempts.

    Args:
        records: The group's accepted images.
        encoded: The shard that holds each sample which is encoded already.
        buckets: The shapes that images are cut to.
        variants: How many variants each image has.
        shard_samples: Most samples per shard; an image's samples stay together in any case.
    """
    reused: set[str] = set()
    missing: defaultdict[Bucket, list[PlannedImage]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.sha256):
        samples = planned_samples(record, variants)
        reused.update(encoded[sample.id] for sample in samples if sample.id in encoded)
        if new := tuple(sample for sample in samples if sample.id not in encoded):
            missing[buckets.choose(record.width, record.height)].append(PlannedImage(record, new))
    shards = (
        NewShard(bucket, images) for bucket in sorted(missing) for images in _chunks(missing[bucket], shard_samples)
    )
    return EncodingPlan(tuple(sorted(reused)), tuple(shards))


def planned_samples(record: CaptionRecord, variants: int) -> list[PlannedSample]:
    """Return all samples that an image gives."""
    ids = sample_ids(record.sha256, [caption.text for caption in record.captions], variants)
    return [
        PlannedSample(sample_key(record.sha256, number), sample, record.captions[number % len(record.captions)])
        for number, sample in enumerate(ids)
    ]


def _chunks(images: Sequence[PlannedImage], size: int) -> Iterator[tuple[PlannedImage, ...]]:
    chunk: list[PlannedImage] = []
    samples = 0
    for image in images:
        if chunk and samples + len(image.samples) > size:
            yield tuple(chunk)
            chunk, samples = [], 0
        chunk.append(image)
        samples += len(image.samples)
    if chunk:
        yield tuple(chunk)
