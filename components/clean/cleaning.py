"""Rejects images once all of them have captions: by the filters' thresholds, and near duplicates of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.clean.config import CleanConfig
from components.clean.near_duplicates import BITS, near_duplicates
from components.clean.reporting import REPORT_KEYS, write_report
from components.clean.tally import Tally
from components.digests import digest, sha256
from components.errors import DataError, NotFound
from components.image.buckets import Buckets
from components.image.filters import FilterConfig, FilterFailure, check_scores
from components.image.fingerprints import as_numbers
from components.image.records import (
    CaptionRecord,
    Rejection,
    caption_rejections_key,
    captions_key,
    captions_prefix,
    clean_rejections_key,
    ingest_rejections_key,
    read_caption_rejections,
    read_captions,
    read_clean_rejections,
    read_ingest_rejections,
    read_manifest,
    write_rejections,
)
from components.progress import Progress
from components.storage.base import Storage

FORMAT = 5  # 5: the report says which captions are surely cut
STATE = "clean.json"
NEAR_DUPLICATE = "near-duplicate"


class Original(NamedTuple):
    """The image that is kept in place of a near duplicate, and the number of bits in which their hashes differ."""

    sha256: str
    distance: int


def clean(
    config: CleanConfig,
    filters: FilterConfig,
    source_id: str,
    groups: Sequence[str],
    caption_set: str,
    workdir: Storage,
    progress: Progress,
    buckets: Buckets | None = None,
    tokens: int | None = None,
) -> dict[str, Any]:
    """Write which captioned images are rejected, and the data report.

    If nothing changed since the last time, nothing is done.

    Args:
        config: Which images are near duplicates, and what the report shows.
        filters: The thresholds that the caption step's measurements are compared with.
        source_id: The source, as ingest named it.
        groups: All partition groups of the source.
        caption_set: Name of the caption set, ``<source-id>/<caption-key>``.
        workdir: The storage of the run.
        progress: Shows the groups cleaned.
        buckets: The shapes that images are cut to, for the report.
        tokens: How many tokens of a caption will be read, for the report; None if that is not known.

    Returns:
        ``kept``, ``rejected_here`` (by this step), ``rejected`` (by any step), ``reused`` (nothing had changed), and
        the keys of the report below the workdir: ``report``, ``summary`` and ``numbers``.

    Raises:
        DataError: If the caption step has not run for a group.
    """
    captions = workdir.child(captions_prefix(caption_set))
    made_from = _made_from(config, filters, source_id, groups, workdir, captions, buckets, tokens)
    last_result = _last_result(captions, made_from, groups)
    if last_result is not None:
        return {**last_result, "reused": True}
    captions.delete(STATE)  # if this step is killed from here on, the old state must not stand for the new files
    manifest = read_manifest(workdir, source_id)
    labels = [member.label for member in manifest.members]
    tally = Tally(config.kept_images, config.rejected_images, buckets, tokens, labels)
    originals = _originals(config, filters, groups, captions)
    names = _names({original.sha256 for original in originals.values()}, groups, captions)
    rejected_here = 0
    for group in progress.track(groups, "groups cleaned", len(groups)):
        kept, rejections = _divide(read_captions(captions, group), config, filters, originals, names)
        write_rejections(captions, clean_rejections_key(group), rejections)
        rejected_here += len(rejections)
        for record in kept:
            tally.keep(record)
        for rejection in [*rejections, *read_caption_rejections(captions, group)]:
            tally.reject(rejection)
    for rejection in read_ingest_rejections(workdir, source_id):
        tally.reject(rejection)
    write_report(config, filters, tally, manifest, caption_set, workdir, captions)
    keys = dict(zip(("report", "summary", "numbers"), REPORT_KEYS, strict=True))
    paths = {name: f"{captions_prefix(caption_set)}/{key}" for name, key in keys.items()}
    result = {"kept": tally.kept, "rejected_here": rejected_here, "rejected": tally.rejected, **paths}
    captions.write_json(STATE, {"format": FORMAT, "made_from": made_from, "result": result})
    return {**result, "reused": False}


def read_rejections(source_id: str, groups: Iterable[str], caption_set: str, workdir: Storage) -> Iterator[Rejection]:
    """Yield what ingest, the caption step and this step have rejected."""
    captions = workdir.child(captions_prefix(caption_set))
    yield from read_ingest_rejections(workdir, source_id)
    for group in groups:
        yield from read_caption_rejections(captions, group)
        yield from read_clean_rejections(captions, group)


def _made_from(
    config: CleanConfig,
    filters: FilterConfig,
    source_id: str,
    groups: Sequence[str],
    workdir: Storage,
    captions: Storage,
    buckets: Buckets | None,
    tokens: int | None,
) -> str:
    """Return one digest of everything that the result depends on; nothing is parsed."""
    keys = [key for group in groups for key in (captions_key(group), caption_rejections_key(group))]
    records = {key: _digest(captions, key) for key in keys}
    ingested = _digest(workdir, ingest_rejections_key(source_id))
    shapes = buckets.shapes if buckets is not None else None
    settings = [config.model_dump(mode="json"), filters.model_dump(mode="json"), shapes, tokens]
    manifest = read_manifest(workdir, source_id)
    counted = [manifest.source, manifest.masks, dict(manifest.other_files), *map(asdict, manifest.members)]
    return digest([FORMAT, settings, counted, ingested, records])


def _digest(storage: Storage, key: str) -> str | None:
    try:
        return sha256(storage.read(key))
    except NotFound:
        return None


def _last_result(captions: Storage, made_from: str, groups: Sequence[str]) -> dict[str, Any] | None:
    """Return the result of the last time if it was made from the same and its files still exist."""
    try:
        state = captions.read_json(STATE)
    except (NotFound, DataError):
        return None
    if not isinstance(state, dict) or (state.get("format"), state.get("made_from")) != (FORMAT, made_from):
        return None
    existing = {entry.key for entry in captions.list()}
    is_whole = existing.issuperset([*map(clean_rejections_key, groups), *REPORT_KEYS])
    return dict(state["result"]) if is_whole else None


def _divide(
    records: Iterable[CaptionRecord],
    config: CleanConfig,
    filters: FilterConfig,
    originals: Mapping[str, Original],
    names: Mapping[str, str],
) -> tuple[list[CaptionRecord], list[Rejection]]:
    """Return the images of a group that are kept, and the rejections of the others."""
    kept, rejections = [], []
    for record in records:
        misfit = check_scores(record.verdicts, filters)
        if misfit is None and record.sha256 in originals:
            misfit = _near_duplicate(originals[record.sha256], names, config.max_distance or 0)
        if misfit is None:
            kept.append(record)
        else:
            why = (misfit.reason, misfit.detail, record.sha256, record.caption_version)
            rejections.append(Rejection(record.name, "clean", *why, misfit.value, misfit.threshold, record.verdicts))
    return kept, rejections


def _near_duplicate(original: Original, names: Mapping[str, str], threshold: int) -> FilterFailure:
    detail = (
        f"looks like {names[original.sha256]!a}, which is kept: {original.distance} of {BITS} bits differ; "
        f"more than {threshold} must (clean.max_distance)"
    )
    return FilterFailure(NEAR_DUPLICATE, original.distance, threshold, detail)


def _originals(
    config: CleanConfig, filters: FilterConfig, groups: Sequence[str], captions: Storage
) -> dict[str, Original]:
    """Return for each near duplicate, by its digest, the image that is kept: the largest, then the first by digest."""
    if config.max_distance is None:
        return {}
    parts = [_columns(read_captions(captions, group), filters) for group in groups]
    hashes, pixels, digests = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((*digests.T[::-1], -pixels))
    alike = near_duplicates(hashes[order], config.max_distance)
    duplicates = np.flatnonzero(alike.keeper != np.arange(len(order)))
    return {
        _hex(digests[order[i]]): Original(_hex(digests[order[alike.keeper[i]]]), int(alike.distance[i]))
        for i in duplicates
    }


def _columns(
    records: Iterable[CaptionRecord], filters: FilterConfig
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
    """Return hashes [N], pixels [N] and digests [N, 4] of the records that pass the filters."""
    fit = [record for record in records if record.phash is not None and check_scores(record.verdicts, filters) is None]
    digests = np.frombuffer(bytes.fromhex("".join(record.sha256 for record in fit)), ">u8").astype(np.uint64)
    return (
        as_numbers([record.phash or "" for record in fit]),
        np.array([record.width * record.height for record in fit], np.int64),
        digests.reshape(-1, 4),
    )


def _names(digests: Set[str], groups: Sequence[str], captions: Storage) -> dict[str, str]:
    if not digests:
        return {}
    records = (record for group in groups for record in read_captions(captions, group))
    return {record.sha256: record.name for record in records if record.sha256 in digests}


def _hex(digest: NDArray[np.uint64]) -> str:
    return digest.astype(">u8").tobytes().hex()
