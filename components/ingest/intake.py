"""Turn a place full of files into records of images: each file read once, known by its content, taken once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

from components.digests import digest
from components.errors import DataError, ImageRejected
from components.images import ImageFacts, check
from components.ingest.catalog import Candidate, Catalog, open_catalog
from components.ingest.config import IngestConfig
from components.ingest.known import Journal, Seen, read_journal, read_known, remove_journal, write_known
from components.ingest.licenses import check_license
from components.ingest.listing import ARCHIVE, IMAGE, READ, Listed, Listing, below_source, choose_layout
from components.ingest.looking import look
from components.ingest.metadata import read_metadata
from components.manifest import (
    ImageRecord,
    Manifest,
    Rejection,
    group_names,
    group_of,
    images_key,
    ingest_prefix,
    ingest_rejections_key,
    read_manifest,
    write_images,
    write_manifest,
)
from components.progress import Progress
from components.sources import Source, open_source
from components.storage import Storage

# What was read is written down on the way in case the step is killed, each time so many rows were read.
JOURNAL_ROWS = 5000
# Small files that a thread reads in one go, so that handing them over costs little.
FILES_AT_ONCE = 16

# Rejections by the place rather than by the file: they may pass, and are tried again each time.
PASSING = ("unreadable", "symlink-outside")

Look = Callable[[Source, IngestConfig, Listed], list[Seen | Rejection]]


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
        read = _see(source, catalog, config, layout, look, listing, workdir, progress)
        if layout == "imagefolder":
            _read_metadata(source, catalog)
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


def _see(
    source: Source,
    catalog: Catalog,
    config: IngestConfig,
    layout: str,
    look: Look,
    listing: Listing,
    workdir: Storage,
    progress: Progress,
) -> int:
    """Read what is new or changed into the catalog; returns how many files that were."""
    kinds = READ[layout]
    catalog.remember(read_known(workdir, source.id), read_journal(workdir, source.id), kinds)
    total = catalog.unseen_count(kinds)
    journal = Journal(workdir, source.id)
    if total:
        journal.add([])  # before the long reading: a workdir that cannot be written shows now
    files = progress.track(_looks(source, catalog.unseen(kinds), config, look), "files read", total)
    for outcomes in _in_rows(files, JOURNAL_ROWS):
        rows = [outcome for outcome in outcomes if isinstance(outcome, Seen)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
        listing.lasting &= not any(one.reason in PASSING for one in refused)
        catalog.see(rows, fresh=True)
        catalog.reject(refused)
        journal.add(rows)
    return total


def _looks(
    source: Source, files: Iterable[Listed], config: IngestConfig, look: Look
) -> Iterator[list[Seen | Rejection]]:
    """Yield what is in each file, in their order, while threads read on."""

    def look_at(some: Sequence[Listed]) -> list[list[Seen | Rejection]]:
        return [look(source, config, file) for file in some]

    waiting: deque[Future[list[list[Seen | Rejection]]]] = deque()
    pool = ThreadPoolExecutor(config.readers, thread_name_prefix="read")
    try:
        for some in _handfuls(files):
            waiting.append(pool.submit(look_at, some))
            if len(waiting) > 2 * config.readers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _handfuls(files: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Yield archives one by one and small files by the handful."""
    for archive, some in groupby(files, key=lambda file: file.kind == ARCHIVE):
        while handful := list(islice(some, 1 if archive else FILES_AT_ONCE)):
            yield handful


def _in_rows(parts: Iterable[list[Seen | Rejection]], most: int) -> Iterator[list[Seen | Rejection]]:
    """Yield the rows of several parts together, none of which is divided."""
    rows: list[Seen | Rejection] = []
    for part in parts:
        rows += part
        if len(rows) >= most:
            yield rows
            rows = []
    if rows:
        yield rows


def _read_metadata(source: Source, catalog: Catalog) -> None:
    """Read what metadata tell of the images into the catalog, and reject lines that cannot be used."""
    for file in catalog.metadata_files():
        try:
            for told in read_metadata(file.name, partial(source.read, file.name)):
                if isinstance(told, Rejection):
                    catalog.reject([told])
                elif not catalog.tell(file.name, told):
                    where, found = f"{file.name}:{told.line}", f"an earlier line speaks of {told.image!a}, and counts"
                    catalog.reject([Rejection(where, "ingest", "metadata-repeated", found)])
        except ImageRejected as refused:
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
    groups = group_names(group_bits(config, catalog.images(), before))
    taken = _choose(catalog, config)
    first = next(taken, None)
    if first is not None:
        images, digests = _write_groups(workdir, source.id, groups, chain([first], taken))
    rejected = catalog.rejected()
    workdir.write_lines(ingest_rejections_key(source.id), (vars(one) for one in catalog.rejections()))
    write_known(workdir, source.id, catalog.seen())
    if first is None:
        raise DataError(f"source {source.url!a}: no image can be used; {_summary(catalog)}")
    manifest = Manifest(source.url, images, rejected, groups, digest(digests), listing.digest)
    write_manifest(workdir, source.id, manifest)
    _tidy(workdir, source.id, manifest)
    return manifest


def group_bits(config: IngestConfig, images: int, before: Manifest | None) -> int:
    """Return how many bits of an image's digest name its group.

    There are enough groups for the images and for the lanes. They never become fewer, so that what the later steps
    have done for a group is found in it, or in the group that it was a part of.
    """
    wanted = max(-(-images // config.group_images), config.lanes)
    bits = (wanted - 1).bit_length()
    return bits if before is None else max(bits, (len(before.groups) - 1).bit_length())


def _choose(catalog: Catalog, config: IngestConfig) -> Iterator[ImageRecord]:
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
        if len(rejections) >= JOURNAL_ROWS:
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


def _write_groups(
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


def _summary(catalog: Catalog) -> str:
    """Say why images were rejected, most frequent reason first, with an example of each."""
    told = [f"{number} × {reason} (such as {name!a}: {detail})" for reason, number, name, detail in catalog.reasons(3)]
    return f"{catalog.rejected()} rejected: {'; '.join(told)}"
