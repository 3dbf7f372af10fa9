"""Turn a place full of files into records of images: each file read once, known by its content, taken once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from components.digests import digest
from components.errors import DataError, ImageRejected
from components.image.records import (
    Manifest,
    Rejection,
    group_names,
    images_key,
    ingest_prefix,
    ingest_rejections_key,
    read_manifest,
    write_manifest,
)
from components.image.sources import Source, open_source
from components.ingest.catalog import Catalog, open_catalog
from components.ingest.config import IngestConfig
from components.ingest.division import choose, group_bits, write_groups
from components.ingest.known import Journal, read_journal, read_known, remove_journal, write_known
from components.ingest.listing import ARCHIVE, IMAGE, READ, Listing, below_source, choose_layout
from components.ingest.looking import look
from components.ingest.metadata import read_metadata
from components.ingest.reading import Look, read_unseen
from components.progress import Progress
from components.storage.base import Storage


def ingest(
    config: IngestConfig, workdir: Storage, progress: Progress, source: Source | None = None, look: Look = look
) -> dict[str, Any]:
    """Write down every image of a source; only files that are new or changed since the last time are read.

    It can be killed at any moment and started again: the records come out with the same bytes.

    Args:
        config: Where the images are and which are taken.
        workdir: Where the records go, below ``ingest/<source-id>/``; the manifest is written last.
        progress: Told of each file read, and of what is new, changed or gone.
        source: The place, where it is open already.
        look: Reads one file.

    Returns:
        ``source_id``, ``groups`` (how many), ``images``, ``rejected``, ``read`` (files read, not known from before),
        ``new``, ``changed`` and ``gone`` (images, by name, since the last time) and ``digest`` (changes when anything
        that a later step reads does).

    Raises:
        DataError: Where there is no such source, it holds no images, or all of them are rejected.
        ConfigError: Where the workdir is the source.
        StorageError: Where the storage or the temporary folder fails.
    """
    source = open_source(config.source) if source is None else source
    listing = Listing(config, below_source(source.url, workdir))
    before = _last(workdir, source.id)
    with open_catalog() as catalog:
        catalog.enter(listing.sort(source.list()))
        if before is not None and listing.digest == before.listing and _is_whole(workdir, source.id, before):
            _tidy(workdir, source.id, before)
            return _result(source, before, progress, read=0, new=0, changed=0, gone=0)
        layout = _layout(config, source, catalog, listing, progress)
        catalog.remember(read_known(workdir, source.id), read_journal(workdir, source.id), READ[layout])
        journal = Journal(workdir, source.id)
        read, lasting = read_unseen(source, config, layout, catalog, journal, look, progress)
        listing.lasting &= lasting
        if layout == "imagefolder":
            _read_metadata(source, catalog, listing)
        manifest = _write(workdir, source, config, catalog, listing, before)
        return _result(source, manifest, progress, read=read, **catalog.changes())


def _result(source: Source, manifest: Manifest, progress: Progress, **counts: int) -> dict[str, Any]:
    progress.event("compared", **counts)
    return {
        "source_id": source.id,
        "groups": len(manifest.groups),
        "images": manifest.images,
        "rejected": manifest.rejected,
        **counts,
        "digest": manifest.digest,
    }


def _last(workdir: Storage, source_id: str) -> Manifest | None:
    """Return what the last run that ended wrote."""
    try:
        return read_manifest(workdir, source_id)
    except DataError:
        return None


def _is_whole(workdir: Storage, source_id: str, manifest: Manifest) -> bool:
    """Return whether all that a manifest speaks of is there, and nothing may pass by itself."""
    if not manifest.listing:
        return False
    there = {entry.key for entry in workdir.list(ingest_prefix(source_id))}
    return {images_key(source_id, group) for group in manifest.groups} <= there


def _tidy(workdir: Storage, source_id: str, manifest: Manifest) -> None:
    """Remove the groups of an earlier partition, and what a run that was killed has left."""
    current = {images_key(source_id, group) for group in manifest.groups}
    groups = images_key(source_id, "").removesuffix(".jsonl")
    for entry in workdir.list(ingest_prefix(source_id)):
        if entry.key.startswith(groups) and entry.key not in current:
            workdir.delete(entry.key)
    remove_journal(workdir, source_id)


def _layout(config: IngestConfig, source: Source, catalog: Catalog, listing: Listing, progress: Progress) -> str:
    kinds = catalog.kinds()
    if not kinds & {IMAGE, ARCHIVE} and catalog.rejected():
        kinds.add(IMAGE)  # there is one, and why it cannot be used is worth more than that there is none
    layout = choose_layout(config, source, kinds, listing.others)
    progress.event("layout", layout=layout, archives_passed_over=ARCHIVE in kinds and ARCHIVE not in READ[layout])
    return layout


def _read_metadata(source: Source, catalog: Catalog, listing: Listing) -> None:
    """Read what metadata tell of the images into the catalog, and reject lines that cannot be used."""
    for file in catalog.metadata_files():
        try:
            for told in read_metadata(file.name, partial(source.read, file.name)):
                if isinstance(told, Rejection):
                    catalog.reject([told])
                elif not catalog.tell(file.name, told):
                    where, found = f"{file.name}:{told.line}", f"an earlier line speaks of {told.image!a}, and counts"
                    catalog.reject([Rejection(where, "ingest", "metadata-repeated", found)])
        except ImageRejected as refused:  # it vanished, or may not be read
            listing.lasting = False
            catalog.reject([Rejection(file.name, "ingest", refused.reason, refused.detail)])
    catalog.reject(
        Rejection(f"{name}:{line}", "ingest", "metadata-missing-file", f"there is no image {image!a}")
        for name, line, image in catalog.told_of_nothing()
    )


def _write(
    workdir: Storage, source: Source, config: IngestConfig, catalog: Catalog, listing: Listing, before: Manifest | None
) -> Manifest:
    """Write groups, rejections and what is known, then the manifest, then remove what it does not speak of."""
    catalog.reject_unusable()
    if before is not None and before.listing:
        # A run that is killed from here on leaves records of two listings: neither must pass for known.
        write_manifest(workdir, source.id, replace(before, listing=""))
    groups = group_names(group_bits(config, catalog.images(), before))
    taken = choose(catalog, config)
    first = next(taken, None)
    if first is not None:
        images, digests = write_groups(workdir, source.id, groups, chain([first], taken))
    rejected = catalog.rejected()
    workdir.write_lines(ingest_rejections_key(source.id), (vars(one) for one in catalog.rejections()))
    write_known(workdir, source.id, catalog.seen())
    if first is None:
        raise DataError(f"source {source.url!a}: no image can be used; {_summary(catalog)}")
    manifest = Manifest(source.url, images, rejected, groups, digest(digests), listing.digest)
    write_manifest(workdir, source.id, manifest)
    _tidy(workdir, source.id, manifest)
    return manifest


def _summary(catalog: Catalog) -> str:
    """Say why images were rejected, most frequent reason first, with an example of each."""
    if not catalog.rejected():
        return "no archive holds a member that is called like one"
    told = [f"{number} × {reason} (such as {name!a}: {detail})" for reason, number, name, detail in catalog.reasons(3)]
    return f"{catalog.rejected()} rejected: {'; '.join(told)}"
