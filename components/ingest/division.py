"""Which images are taken, and how they are divided into groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from components.errors import ImageRejected
from components.image.decoding import ImageFacts, check
from components.image.records import ImageRecord, Manifest, Rejection, group_of, write_images
from components.ingest.catalog import Candidate, Catalog
from components.ingest.config import IngestConfig
from components.ingest.licenses import check_license
from components.storage.base import Storage

REJECTED_AT_ONCE = 5000


def group_bits(config: IngestConfig, images: int, before: Manifest | None) -> int:
    """Return how many bits of an image's digest name its group.

    There are enough groups for the images and for the lanes. They never become fewer, so that what the later steps
    have done for a group is found in it, or in the group that it was a part of.
    """
    wanted = max(-(-images // config.group_images), config.lanes)
    bits = (wanted - 1).bit_length()
    return bits if before is None else max(bits, (len(before.groups) - 1).bit_length())


def choose(catalog: Catalog, config: IngestConfig) -> Iterator[ImageRecord]:
    """Hold the images against the settings and yield each content once, under the first name that passes."""
    rejections: list[Rejection] = []
    for sha256, equal in groupby(catalog.candidates(), key=lambda one: one.sha256):
        taken = None
        for one in equal:
            try:
                facts = _fit(one, config)
                if taken is not None:
                    raise ImageRejected("duplicate", f"duplicate of {taken}")
            except ImageRejected as refused:
                rejections.append(Rejection(one.name, "ingest", refused.reason, refused.detail, sha256))
                continue
            taken = one.name
            yield ImageRecord(one.name, sha256, one.bytes, *facts, one.caption, one.license, one.source)
        if len(rejections) >= REJECTED_AT_ONCE:
            catalog.reject(rejections)
            rejections.clear()
    catalog.reject(rejections)


def _fit(one: Candidate, config: IngestConfig) -> ImageFacts:
    if not one.format:
        raise ImageRejected(one.reason, one.detail)
    facts = ImageFacts(one.width, one.height, one.format)
    check(facts, config.limits)
    check_license(one.license, config.allowed_licenses, keep_unknown=config.keeps_unknown)
    return facts


def write_groups(
    workdir: Storage, source_id: str, groups: Sequence[str], images: Iterator[ImageRecord]
) -> tuple[int, dict[str, str]]:
    """Write the groups one after the other; returns how many images there are, and each group's digest."""
    bits = (len(groups) - 1).bit_length()
    by_group = groupby(images, key=lambda image: group_of(image.sha256, bits))
    total, digests = 0, {}
    group, records = next(by_group, ("", iter(())))
    for name in groups:
        part = list(records) if group == name else []
        total += len(part)
        digests[name] = write_images(workdir, source_id, name, part)
        if group == name:
            group, records = next(by_group, ("", iter(())))
    return total, digests
