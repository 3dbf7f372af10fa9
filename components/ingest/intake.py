"""Turn a place full of files into records of images: each file read once, known by its content, taken once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

from components.digests import digest, sha256
from components.errors import DataError, ImageRejected
from components.images import ImageFacts, ImageLimits, check, header
from components.ingest.config import IngestConfig
from components.ingest.known import Seen, read_known, write_known
from components.ingest.listing import Listing, list_source
from components.manifest import (
    ImageRecord,
    Manifest,
    Rejection,
    images_key,
    ingest_prefix,
    ingest_rejections_key,
    write_images,
    write_manifest,
    write_rejections,
)
from components.progress import Progress
from components.sources import Source, SourceFile, open_source
from components.storage import Storage

# What was read is saved on the way in case the step is killed: so many times at most, and not for fewer files.
SAVES = 10
SAVE_FILES = 1000


def ingest(config: IngestConfig, workdir: Storage, progress: Progress) -> dict[str, Any]:
    """Write down every image of a source; only files that are new or changed since the last time are read.

    Args:
        config: Where the images are and which are taken.
        workdir: Where the records go, below ``ingest/<source-id>/``; the manifest is written last.
        progress: Told of each file read.

    Returns:
        ``source_id``, ``groups`` (names), ``images``, ``rejected``, ``read`` (files read, not known from before) and
        ``digest`` (changes when anything that a later step reads does).

    Raises:
        DataError: Where there is no such source, it holds no images, or all of them are rejected.
        ConfigError: Where the workdir is the source.
    """
    source = open_source(config.source)
    listing = list_source(source, config.extensions, workdir)
    if not listing.images and not listing.rejections:
        raise DataError(
            f"source {source.url!a} holds no images (files of other kinds: {listing.others}); expected names ending "
            f"in {', '.join(config.extensions)}; check ingest.source and ingest.extensions"
        )
    seen, unreadable, read = _see(source, listing.images, config, workdir, progress)
    images, unfit = _choose(seen, listing, config.limits)
    rejections = [*listing.rejections, *unreadable, *unfit]
    write_rejections(workdir, ingest_rejections_key(source.id), rejections)
    if not images:
        raise DataError(f"source {source.url!a}: no image can be used; {_summary(rejections)}")
    manifest = _write(workdir, source, config.groups, images, len(rejections))
    return {
        "source_id": source.id,
        "groups": list(manifest.groups),
        "images": manifest.images,
        "rejected": manifest.rejected,
        "read": read,
        "digest": manifest.digest,
    }


def _see(
    source: Source, files: Sequence[SourceFile], config: IngestConfig, workdir: Storage, progress: Progress
) -> tuple[list[Seen], list[Rejection], int]:
    """Return what is in the files, which of them cannot be read, and how many were not known from before."""
    known = read_known(workdir, source.id)
    seen = [known[file.name] for file in files if file.name in known and known[file.name].still_holds(file)]
    unchanged = {one.name for one in seen}
    new = [file for file in files if file.name not in unchanged]
    unreadable: list[Rejection] = []
    write_known(workdir, source.id, seen)  # before the long reading: a workdir that cannot be written shows now
    with ThreadPoolExecutor(config.readers) as pool:
        looks = pool.map(partial(_look, source, config.limits.max_bytes), new)
        outcomes = progress.track(looks, "images read", len(new))
        while part := list(islice(outcomes, max(SAVE_FILES, -(-len(new) // SAVES)))):
            seen += [outcome for outcome in part if isinstance(outcome, Seen)]
            unreadable += [outcome for outcome in part if isinstance(outcome, Rejection)]
            write_known(workdir, source.id, seen)
    return seen, unreadable, len(new)


def _look(source: Source, max_bytes: int, file: SourceFile) -> Seen | Rejection:
    """Read one file; a rejection stands for what could not be read, and is not remembered."""
    try:
        if file.size > max_bytes:
            raise ImageRejected("too-large", f"{file.size} bytes; at most {max_bytes} are read (limits.max_bytes)")
        data = source.read(file.name)
    except ImageRejected as refused:
        return Rejection(file.name, "ingest", refused.reason, refused.detail)
    try:
        facts = header(data)
    except ImageRejected as refused:
        return Seen(file.name, file.size, file.modified, sha256(data), None, refused.reason, refused.detail)
    return Seen(file.name, file.size, file.modified, sha256(data), facts)


def _choose(seen: Iterable[Seen], listing: Listing, limits: ImageLimits) -> tuple[list[ImageRecord], list[Rejection]]:
    """Hold what was seen against the limits and take each content once, under the first of its names."""
    images: dict[str, ImageRecord] = {}
    rejections = []
    for one in sorted(seen, key=lambda one: one.name):
        try:
            facts = _fit(one, limits)
            if one.sha256 in images:
                raise ImageRejected("duplicate", f"duplicate of {images[one.sha256].name}")
        except ImageRejected as refused:
            rejections.append(Rejection(one.name, "ingest", refused.reason, refused.detail, one.sha256))
        else:
            caption = listing.caption_of(one.name)
            images[one.sha256] = ImageRecord(one.name, one.sha256, one.bytes, *facts, caption)
    return list(images.values()), rejections


def _fit(one: Seen, limits: ImageLimits) -> ImageFacts:
    if one.facts is None:
        raise ImageRejected(one.reason, one.detail)
    check(one.facts, limits)
    return one.facts


def _write(workdir: Storage, source: Source, groups: int, images: list[ImageRecord], rejected: int) -> Manifest:
    """Write the groups, then the manifest, then remove the groups of an earlier partition."""
    members: dict[str, list[ImageRecord]] = {f"{group:03d}": [] for group in range(groups)}
    for image in images:
        # By content, so that an image stays in its group whatever it is called and whatever comes beside it.
        members[f"{int(image.sha256[:8], 16) % groups:03d}"].append(image)
    for group, records in members.items():
        write_images(workdir, source.id, group, records)
    ordered = sorted((asdict(image) for image in images), key=lambda image: str(image["sha256"]))
    manifest = Manifest(
        source.url, len(images), rejected, tuple(members), digest({"groups": groups, "images": ordered})
    )
    write_manifest(workdir, source.id, manifest)
    current = {images_key(source.id, group) for group in members}
    for entry in workdir.list(ingest_prefix(source.id)):
        if entry.key.startswith(images_key(source.id, "").removesuffix(".jsonl")) and entry.key not in current:
            workdir.delete(entry.key)
    return manifest


def _summary(rejections: Sequence[Rejection]) -> str:
    """Say why images were rejected, most frequent reason first, with an example of each."""
    examples = {rejection.reason: rejection for rejection in reversed(rejections)}
    counts = Counter(rejection.reason for rejection in rejections).most_common(3)
    told = [
        f"{count} × {reason} (such as {examples[reason].name!a}: {examples[reason].detail})" for reason, count in counts
    ]
    return f"{len(rejections)} rejected: {'; '.join(told)}"
