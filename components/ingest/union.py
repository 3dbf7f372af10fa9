"""Ingest of several sources: each is recorded on its own, and then all of them as one, with each image once."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from typing import Any

from components.digests import digest
from components.image.partition import group_names
from components.image.records import (
    FORMAT,
    ImageRecord,
    Manifest,
    Rejection,
    ingest_rejections_key,
    read_images,
    read_manifest,
    write_manifest,
)
from components.image.rejections import MOST_REASONS
from components.image.union import UnionMember, in_union, labels_of, shares_of
from components.image.union_source import UnionSource, open_places
from components.ingest.catalog import Catalog, open_catalog
from components.ingest.config import IngestConfig
from components.ingest.groups import DUPLICATE_OF, REJECTED_AT_ONCE, group_bits, write_groups
from components.ingest.ingest import check_share, ingest, is_complete, previous_manifest, remove_groups, result_of
from components.progress import Progress
from components.storage.base import Storage

_COUNTS = ("read", "new", "changed", "gone")


def ingest_sources(config: IngestConfig, workdir: Storage, progress: Progress) -> dict[str, Any]:
    """Record every image of the sources that the settings name.

    Several are a union: of equal images in several sources one is kept, that of the source whose images are repeated
    most often, or of these the first. Names in the union begin with the label of their source.

    Args:
        config: Where the images are and which to use.
        workdir: Where the records go: those of each source below ``ingest/<source-id>/``, and those of the union.
        progress: Gets the events of `components.ingest.ingest.ingest`.

    Returns:
        As `components.ingest.ingest.ingest`; ``source_id`` is the union's, and ``sources`` has of each source its
        ``label``, ``source`` (URL), ``images``, ``rejected``, and the ``share`` of an epoch that it is to have.

    Raises:
        DarkroomError: As `components.ingest.ingest.ingest` does.
        ConfigError: If two are the same place, or one lies within another.
    """
    if config.source is not None:
        return ingest(config, workdir, progress)
    sources = open_places(config.places)
    results = []
    for member, source in zip(config.members, sources, strict=True):
        progress.event("source", source=source.url)
        results.append(ingest(member, workdir, progress, source))
    labels = labels_of([source.url for source in sources])
    ids = [str(result["source_id"]) for result in results]
    union = _Union(
        config,
        config.records_id([source.url for source in sources]),
        UnionSource(dict(zip(labels, sources, strict=True))).url,
        tuple(
            UnionMember(label, one_id, source.url, 0, 0, one.repeats, one.weight)
            for label, one_id, source, one in zip(labels, ids, sources, config.sources, strict=True)
        ),
        workdir,
    )
    manifest = union.manifest()
    check_share(config, workdir, union.id, manifest)
    counts = {name: sum(int(result[name]) for result in results) for name in _COUNTS}
    return {**result_of(union.id, manifest, counts), "sources": _shown(manifest.members)}


def _shown(members: Sequence[UnionMember]) -> list[dict[str, Any]]:
    shares = shares_of(members, [member.images for member in members])
    names = ("label", "source", "images", "rejected")
    return [
        {**{name: getattr(member, name) for name in names}, "share": round(float(share), 6)}
        for member, share in zip(members, shares, strict=True)
    ]


@dataclass(frozen=True)
class _Union:
    """The records of several sources as those of one.

    Attributes:
        config: The settings.
        id: The name of its records.
        url: Its sources' URLs.
        members: Its sources in the order of the settings, without counts.
        workdir: Where the records are.
    """

    config: IngestConfig
    id: str
    url: str
    members: tuple[UnionMember, ...]
    workdir: Storage

    def manifest(self) -> Manifest:
        """Return the union's manifest; its records are written if those of a source have changed."""
        manifests = [read_manifest(self.workdir, member.source_id) for member in self.members]
        # What could not be read may be other files next time, though their number is the same.
        is_stable = all(manifest.listing for manifest in manifests)
        listing = digest([FORMAT, [asdict(manifest) for manifest in manifests]]) if is_stable else ""
        previous = previous_manifest(self.workdir, self.id)
        if previous is None or previous.listing != listing or not is_complete(self.workdir, self.id, previous):
            with open_catalog() as catalog:
                return self._write(catalog, manifests, listing, previous)
        remove_groups(self.workdir, self.id, previous)
        return previous

    def _write(
        self, catalog: Catalog, manifests: Sequence[Manifest], listing: str, previous: Manifest | None
    ) -> Manifest:
        """Write groups and rejections, then the manifest, then remove what is no longer part of it."""
        if previous is not None and previous.listing:
            # A run that is killed from here on leaves records of two listings: the next run must trust neither.
            write_manifest(self.workdir, self.id, replace(previous, listing=""))
        for member in self.members:
            rejections = self.workdir.read_records(ingest_rejections_key(member.source_id))
            catalog.reject(_in_union(Rejection(**values), member.label) for values in rejections)
        groups = group_names(group_bits(self.config, sum(manifest.images for manifest in manifests), previous))
        images, duplicates = Counter[str](), Counter[str]()
        merged = self._merged(manifests, catalog, images, duplicates)
        counts, digests = write_groups(self.workdir, self.id, groups, merged)
        self.workdir.write_records(ingest_rejections_key(self.id), map(vars, catalog.rejections()))
        manifest = Manifest(
            self.url,
            images=counts["images"],
            rejected=catalog.count_rejected(),
            groups=groups,
            digest=digest(digests),
            listing=listing,
            reasons={one.reason: one.images for one in catalog.reasons()[:MOST_REASONS]},
            masks=counts["masks"],
            alpha=counts["alpha"],
            other_files=dict(sum((Counter(manifest.other_files) for manifest in manifests), Counter[str]())),
            members=tuple(
                replace(member, images=images[member.label], rejected=manifest.rejected + duplicates[member.label])
                for member, manifest in zip(self.members, manifests, strict=True)
            ),
        )
        write_manifest(self.workdir, self.id, manifest)
        remove_groups(self.workdir, self.id, manifest)
        return manifest

    def _merged(
        self, manifests: Sequence[Manifest], catalog: Catalog, images: Counter[str], duplicates: Counter[str]
    ) -> Iterator[ImageRecord]:
        """Yield each image once, in the order of the digests; count those of each source, and reject the others."""
        order = sorted(range(len(self.members)), key=lambda number: (-(self.members[number].repeats or 1), number))
        streams = [self._images(rank, number, manifests[number]) for rank, number in enumerate(order)]
        rejections: list[Rejection] = []
        merged = heapq.merge(*streams, key=lambda one: (one[1].sha256, one[0]))
        for sha256, equal in groupby(merged, key=lambda one: one[1].sha256):
            (_, kept, label), *others = equal
            images[label] += 1
            for _, image, other in others:
                duplicates[other] += 1
                detail = f"{DUPLICATE_OF}{kept.name}"
                rejections.append(Rejection(image.name, "ingest", "duplicate", detail, sha256))
            if len(rejections) >= REJECTED_AT_ONCE:
                catalog.reject(rejections)
                rejections.clear()
            yield kept
        catalog.reject(rejections)

    def _images(self, rank: int, number: int, manifest: Manifest) -> Iterator[tuple[int, ImageRecord, str]]:
        """Yield the images of one source in the order of their digests, with the source's rank and label."""
        member = self.members[number]
        groups = (read_images(self.workdir, member.source_id, group) for group in manifest.groups)
        for image in chain.from_iterable(groups):
            yield rank, in_union(image, member.label), member.label


def _in_union(rejection: Rejection, label: str) -> Rejection:
    """Return the rejection of a source's file as the union has it."""
    detail = rejection.detail
    if rejection.reason == "duplicate":
        detail = detail.replace(DUPLICATE_OF, f"{DUPLICATE_OF}{label}/", 1)
    return replace(rejection, name=f"{label}/{rejection.name}", detail=detail)
