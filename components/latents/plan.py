"""Which samples of a group are there already, and which go into which new shard: names in, names out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from components.manifest import CaptionRecord
from components.shards import SampleId, sample_id, shard_name


@dataclass(frozen=True)
class NewShard:
    """A shard that is to be made: its name and its samples in order."""

    name: str
    bucket: tuple[int, int]
    records: tuple[CaptionRecord, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be done for a group.

    Attributes:
        reused: Names of the finished shards that hold live samples of the group, sorted.
        known: How many live samples they hold.
        new: Shards to be made.
    """

    reused: tuple[str, ...]
    known: int
    new: tuple[NewShard, ...]


def plan(
    records: Iterable[CaptionRecord], known: Mapping[SampleId, str], bucket: tuple[int, int], shard_samples: int
) -> Plan:
    """Plan a group's shards; records and settings decide, never their order or an earlier attempt.

    Args:
        records: The group's accepted images.
        known: The shard that holds each sample which is encoded already.
        bucket: Height and width in pixels.
        shard_samples: Most samples per shard.
    """
    ordered = sorted(records, key=lambda record: record.sha256)
    reused = [known[pair] for record in ordered if (pair := pair_of(record)) in known]
    missing = [record for record in ordered if pair_of(record) not in known]
    return Plan(tuple(sorted(set(reused))), len(reused), tuple(_chunks(missing, bucket, shard_samples)))


def pair_of(record: CaptionRecord) -> SampleId:
    """Return what a sample is made from."""
    return sample_id(record.sha256, record.captions[0].text)


def _chunks(records: Sequence[CaptionRecord], bucket: tuple[int, int], size: int) -> Iterator[NewShard]:
    for first in range(0, len(records), size):
        chunk = tuple(records[first : first + size])
        yield NewShard(shard_name(bucket, [(record.sha256, pair_of(record)) for record in chunk]), bucket, chunk)
