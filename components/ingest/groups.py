"""Select the images that may be used, and divide them into groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from components.errors import ImageRejected
from components.image.decoding import ImageFacts, check_limits
from components.image.partition import group_of
from components.image.records import ImageRecord, Manifest, Rejection, write_images
from components.ingest.catalog import Candidate, Catalog
from components.ingest.config import IngestConfig
from components.ingest.licenses import check_license
from components.storage.base import Storage

REJECTED_AT_ONCE = 5000
DUPLICATE_OF = "duplicate of "  # then the name of the image that is kept


def group_bits(config: IngestConfig, images: int, previous: Manifest | None) -> int:
    """Return how many bits of an image's digest name its group.

    There are enough groups for the images and for the lanes. Their number never falls, so that what the later steps
    have done for a group is in its records, or in those of the group that it was a part of.
    """
    groups = max(-(-images // config.group_images), config.lanes)
    bits = (groups - 1).bit_length()
    return bits if previous is None else max(bits, (len(previous.groups) - 1).bit_length())


def select_images(catalog: Catalog, config: IngestConfig) -> Iterator[ImageRecord]:
    """Yield each content once, under the first name that passes the limits and licences; reject all others."""
    rejections: list[Rejection] = []
    for sha256, same_content in groupby(catalog.candidates(), key=lambda candidate: candidate.sha256):
        selected = None
        for candidate in same_content:
            try:
                facts = _check(candidate, config)
                if selected is not None:
                    raise ImageRejected("duplicate", f"{DUPLICATE_OF}{selected}")
            except ImageRejected as error:
                rejections.append(Rejection(candidate.name, "ingest", error.reason, error.detail, sha256))
                continue
            selected = candidate.name
            belongings = {name: getattr(candidate, name) for name in ("caption", "license", "source", "mask")}
            yield ImageRecord(candidate.name, sha256, candidate.bytes, **facts._asdict(), **belongings)
        if len(rejections) >= REJECTED_AT_ONCE:
            catalog.reject(rejections)
            rejections.clear()
    catalog.reject(rejections)


def _check(candidate: Candidate, config: IngestConfig) -> ImageFacts:
    if not candidate.format:
        raise ImageRejected(candidate.reason, candidate.detail)
    facts = ImageFacts(candidate.width, candidate.height, candidate.format, candidate.alpha)
    check_limits(facts, config.limits)
    check_license(candidate.license, config.allowed_licenses, keep_unknown=config.keeps_unknown)
    return facts


def write_groups(
    workdir: Storage, source_id: str, groups: Sequence[str], images: Iterator[ImageRecord]
) -> tuple[Counter[str], dict[str, str]]:
    """Write the groups one after the other.

    Returns:
        How many ``images`` there are, how many with ``masks``, and how many others with ``alpha``; each group's digest.
    """
    bits = (len(groups) - 1).bit_length()
    by_group = groupby(images, key=lambda image: group_of(image.sha256, bits))
    counts, digests = Counter[str](), {}
    group, records = next(by_group, ("", iter(())))
    for name in groups:
        part = list(records) if group == name else []
        counts["images"] += len(part)
        counts["masks"] += sum(image.mask is not None for image in part)
        counts["alpha"] += sum(image.mask is None and image.alpha for image in part)
        digests[name] = write_images(workdir, source_id, name, part)
        if group == name:
            group, records = next(by_group, ("", iter(())))
    return counts, digests
