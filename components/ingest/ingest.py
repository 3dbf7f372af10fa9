"""The ingest step: turn the files of a source into records of images, reading only files that are new or changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from components.digests import digest
from components.errors import DamagedFile, DataError, ImageRejected
from components.image.partition import group_names
from components.image.records import (
    Manifest,
    Rejection,
    images_key,
    ingest_prefix,
    ingest_rejections_key,
    read_ingest_rejections,
    read_manifest,
    write_manifest,
)
from components.image.rejections import MOST_REASONS, check_rejected, explain
from components.image.sources import Source, open_source
from components.ingest.catalog import Catalog, open_catalog
from components.ingest.config import IngestConfig
from components.ingest.file_cache import CacheJournal, read_cache, read_journal, remove_journal, write_cache
from components.ingest.file_reader import read_file
from components.ingest.groups import group_bits, select_images, write_groups
from components.ingest.imports.importing import ImportedSource, import_files
from components.ingest.imports.row_files import find_row_files
from components.ingest.listing import ARCHIVE, IMAGE, READ_KINDS, Listing, choose_layout, workdir_prefix
from components.ingest.metadata_files import read_metadata
from components.ingest.parallel_reader import ReadFile, read_new_files
from components.progress import Progress
from components.storage.base import Storage


def ingest(
    config: IngestConfig,
    workdir: Storage,
    progress: Progress,
    source: Source | None = None,
    read_file: ReadFile = read_file,
) -> dict[str, Any]:
    """Record every image of a source; only files that are new or changed since the last run are read.

    The step can be killed at any moment and started again: the records come out with the same bytes.

    Args:
        config: Where the images are and which to use.
        workdir: Where the records go, below ``ingest/<source-id>/``; the manifest is written last.
        progress: Gets an event for the files read, and for what is new, changed or gone.
        source: The source, if it is open already.
        read_file: Reads one file.

    Returns:
        ``source_id``, ``groups`` (how many), ``images``, ``rejected``, ``read`` (files read, not cached), ``new``,
        ``changed`` and ``gone`` (images, by name, since the last run), ``digest`` (changes when anything that a
        later step reads does), and of the manifest ``reasons``, ``masks``, ``alpha`` and ``other_files``.

    Raises:
        DataError: If there is no such source, it holds no images, or more are rejected than ``max_rejected`` accepts.
        ConfigError: If the workdir is the source.
        StorageError: If the storage or the temporary folder fails.
    """
    source = open_source(config.places[0]) if source is None else source
    source_id = config.source_id(source.url)
    own_files = workdir_prefix(source.url, workdir)
    listing = Listing(config, own_files)
    row_files = find_row_files(source, config, own_files)
    imported = None if row_files is None else import_files(source, row_files, config, workdir, progress)
    if imported is not None:
        source = imported
        listing.include(imported.digest, imported.left_out, stable=imported.stable)
    previous = previous_manifest(workdir, source_id)
    with open_catalog() as catalog:
        catalog.add_files(listing.select(source.list()), config.extensions)
        catalog.reject(imported.rejections if imported is not None else ())
        if previous is not None and listing.digest == previous.listing and is_complete(workdir, source_id, previous):
            _remove_leftovers(workdir, source_id, source.id, previous)
            check_share(config, workdir, source_id, previous)
            return _result(source_id, previous, progress, read=0, new=0, changed=0, gone=0)
        layout = _layout(config, source, catalog, listing, progress)
        cached, journaled = read_cache(workdir, source.id), read_journal(workdir, source.id)
        catalog.add_earlier_records(cached, journaled, READ_KINDS[layout])
        journal = CacheJournal(workdir, source.id)
        read, stable = read_new_files(source, config, layout, catalog, journal, read_file, progress)
        listing.stable &= stable
        if layout == "imagefolder":
            _read_metadata(source, config, catalog, listing)
        other_files = catalog.other_files(layout, listing.other_files)
        manifest = _write(workdir, source, source_id, config, catalog, listing, previous, other_files)
        check_share(config, workdir, source_id, manifest)
        return _result(source_id, manifest, progress, read=read, **catalog.changes())


def _result(source_id: str, manifest: Manifest, progress: Progress, **counts: int) -> dict[str, Any]:
    progress.event("compared", **counts)
    return result_of(source_id, manifest, counts)


def result_of(source_id: str, manifest: Manifest, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the step's result; counts are those of `ingest` that are not in the manifest."""
    return {
        "source_id": source_id,
        "groups": len(manifest.groups),
        "images": manifest.images,
        "rejected": manifest.rejected,
        **counts,
        "digest": manifest.digest,
        "reasons": dict(manifest.reasons),
        "masks": manifest.masks,
        "alpha": manifest.alpha,
        "other_files": dict(manifest.other_files),
    }


def check_share(config: IngestConfig, workdir: Storage, source_id: str, manifest: Manifest) -> None:
    """Check that not too many images were rejected.

    Raises:
        DataError: If more were rejected than ``max_rejected`` accepts, with the reasons and what to do.
    """
    rejections = partial(read_ingest_rejections, workdir, source_id)
    check_rejected(manifest.images, manifest.rejected, rejections, config.max_rejected)


def previous_manifest(workdir: Storage, source_id: str) -> Manifest | None:
    """Return the manifest of the last complete run; None if there was none, or one of another format.

    Raises:
        DamagedFile: If it is damaged: without it, there might be fewer groups, and all would be captioned again.
    """
    try:
        return read_manifest(workdir, source_id)
    except DamagedFile:
        raise
    except DataError:
        return None


def is_complete(workdir: Storage, source_id: str, manifest: Manifest) -> bool:
    """Return whether all that a manifest stands for exists, and its listing was stable."""
    if not manifest.listing:
        return False
    existing = {entry.key for entry in workdir.list(ingest_prefix(source_id))}
    groups = {images_key(source_id, group) for group in manifest.groups}
    return {*groups, ingest_rejections_key(source_id)} <= existing


def _remove_leftovers(workdir: Storage, source_id: str, place: str, manifest: Manifest) -> None:
    """Remove the groups of an earlier partition, and the journal of a run that was killed."""
    remove_groups(workdir, source_id, manifest)
    remove_journal(workdir, place)


def remove_groups(workdir: Storage, source_id: str, manifest: Manifest) -> None:
    """Remove the groups of an earlier partition."""
    current = {images_key(source_id, group) for group in manifest.groups}
    groups = images_key(source_id, "").removesuffix(".jsonl")
    for entry in workdir.list(ingest_prefix(source_id)):
        if entry.key.startswith(groups) and entry.key not in current:
            workdir.delete(entry.key)


def _layout(config: IngestConfig, source: Source, catalog: Catalog, listing: Listing, progress: Progress) -> str:
    kinds = catalog.kinds()
    if not kinds & {IMAGE, ARCHIVE} and catalog.count_rejected():
        kinds.add(IMAGE)  # an image exists: why it is rejected says more than that there are no images
    if isinstance(source, ImportedSource):
        layout = source.layout
    else:
        layout = choose_layout(config, source, kinds, listing.other_files)
    progress.event("layout", layout=layout, archives_ignored=ARCHIVE in kinds and ARCHIVE not in READ_KINDS[layout])
    return layout


def _read_metadata(source: Source, config: IngestConfig, catalog: Catalog, listing: Listing) -> None:
    """Read the metadata files into the catalog, and reject the lines that cannot be used."""
    for file in catalog.metadata_files():
        try:
            for line in read_metadata(file.name, partial(source.read, file.name), config.caption_fields):
                if isinstance(line, Rejection):
                    catalog.reject([line])
                elif not catalog.add_metadata(file.name, line):
                    detail = f"an earlier line of this file names {line.image!a} too, and counts"
                    catalog.reject([Rejection(f"{file.name}:{line.line}", "ingest", "metadata-repeated", detail)])
        except ImageRejected as error:  # the file was removed meanwhile, or must not be read
            listing.stable = False
            catalog.reject([Rejection(file.name, "ingest", error.reason, error.detail)])
    catalog.reject(
        Rejection(f"{name}:{line}", "ingest", "metadata-missing-file", f"the source has no image {image!a}")
        for name, line, image in catalog.metadata_without_image()
    )


def _write(
    workdir: Storage,
    source: Source,
    source_id: str,
    config: IngestConfig,
    catalog: Catalog,
    listing: Listing,
    previous: Manifest | None,
    other_files: Mapping[str, int],
) -> Manifest:
    """Write groups, rejections and the cache, then the manifest, then remove what is no longer part of it."""
    catalog.reject_unusable()
    if previous is not None and previous.listing:
        # A run that is killed from here on leaves records of two listings: the next run must trust neither.
        write_manifest(workdir, source_id, replace(previous, listing=""))
    groups = group_names(group_bits(config, catalog.count_images(), previous))
    selected = select_images(catalog, config)
    first = next(selected, None)
    if first is not None:
        counts, digests = write_groups(workdir, source_id, groups, chain([first], selected))
    rejected = catalog.count_rejected()
    workdir.write_records(ingest_rejections_key(source_id), map(vars, catalog.rejections()))
    write_cache(workdir, source.id, catalog.records())
    if first is None:
        raise DataError(f"source {source.url!a}: no image can be used\n{explain(catalog.reasons())}")
    manifest = Manifest(
        source.url,
        rejected=rejected,
        groups=groups,
        digest=digest(digests),
        listing=listing.digest,
        reasons={one.reason: one.images for one in catalog.reasons()[:MOST_REASONS]},
        other_files=other_files,
        imports=source.imports if isinstance(source, ImportedSource) else "",
        images=counts["images"],
        masks=counts["masks"],
        alpha=counts["alpha"],
    )
    write_manifest(workdir, source_id, manifest)
    _remove_leftovers(workdir, source_id, source.id, manifest)
    return manifest
