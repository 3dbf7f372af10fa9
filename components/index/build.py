"""Builds a new version of the dataset: joins the groups' shards with those of the version before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from components.dataset.caption_lengths import read_caption_lengths
from components.dataset.encoding_record import read_encoding
from components.dataset.format import SampleId, ShardIndex, find_whole, sample_ids
from components.dataset.prompts import CaptionNotes, NotedCaptions
from components.dataset.versions import (
    Dataset,
    Shard,
    is_held_out,
    make_dataset,
    read_dataset,
    read_group,
    read_variants,
    write_dataset,
)
from components.errors import DataError
from components.image.authors import count_authors
from components.image.records import (
    Rejection,
    read_accepted,
    read_caption_rejections,
    read_clean_rejections,
    read_ingest_rejections,
    read_latents_rejections,
    read_manifest,
)
from components.image.union import UnionMember, split_name
from components.index.config import IndexConfig
from components.index.files import REJECTED, IndexFiles
from components.index.last_result import delete_result, fingerprint, read_result, write_result
from components.index.repeats import RepeatsOfImages
from components.progress import Progress
from components.storage.base import Storage

READERS = 16  # indexes of shards that are read at the same time


def index(
    config: IndexConfig,
    source_id: str,
    groups: Sequence[str],
    caption_set: str,
    encoding_key: str,
    workdir: Storage,
    progress: Progress,
    variants: int | None = None,
) -> dict[str, Any]:
    """Join the groups' shards into one dataset, and commit it.

    Samples whose image or caption was removed become tombstones: they stay in their shards, and are used again when the
    image comes back. If nothing changed, ``dataset.json`` gets the same bytes.

    Args:
        config: Settings.
        source_id: The source, as ingest named it.
        groups: All partition groups of the source.
        caption_set: The caption set that the groups were encoded from.
        encoding_key: The dataset's folder.
        workdir: The storage of all files.
        progress: Reports what happens.
        variants: How many variants of each image the dataset has, of those that are encoded; None for those that the
            latents step encoded last. Another run may have encoded more of the same captions since.

    Returns:
        ``dataset_digest``, ``images``, ``samples``, ``held_out`` (images), ``rejected``, ``shards``, ``encoding_key``,
        ``caption_set`` and ``captions_by`` (how many captions each author wrote).

    Raises:
        DataError: If a group is not encoded, a live sample is in no shard, or no image is left to train on.
    """
    storage = workdir.child(f"datasets/{encoding_key}")
    files = IndexFiles(workdir, storage, source_id, caption_set)
    inputs = fingerprint(files, groups, config.held_out, variants)
    if last_result := read_result(files, inputs):
        return last_result
    members = read_manifest(workdir, source_id).members
    live, authors, noted, owners = _accepted(files, groups, config.held_out, variants, members)
    repeats = RepeatsOfImages(members, owners, live, config.held_out)
    shards = join(_whole_shards(files, groups, progress), live, config.held_out, repeats)
    rejections = _rejections(files, groups)
    images = {sample.image for sample in live}
    held_out = sum(is_held_out(image, config.held_out) for image in images)
    counts = (len(rejections), len(images), held_out)
    dataset = make_dataset(encoding_key, read_encoding(storage), shards, *counts, caption_set, authors, _lengths(files))
    dataset = replace(dataset, noted_captions=noted, repeats=repeats.of_dataset)
    _check(dataset, live, rejections, config)
    delete_result(files, inputs)
    files.records.write_records(REJECTED, (asdict(rejection) for rejection in rejections))
    write_dataset(storage, dataset)
    result = {
        "dataset_digest": dataset.digest,
        "images": dataset.images,
        "samples": dataset.samples,
        "held_out": dataset.held_out,
        "rejected": dataset.rejected,
        "shards": len(dataset.shards),
        "encoding_key": encoding_key,
        "caption_set": caption_set,
        "captions_by": authors,
        **repeats.result(),
    }
    write_result(files, inputs, result)
    return result


def join(
    shards: Iterable[tuple[str, ShardIndex]],
    live: set[SampleId],
    held_out: float,
    repeats: RepeatsOfImages | None = None,
) -> list[Shard]:
    """Return the shards with the samples that are held out, and those that are not used any more.

    A sample that is in several shards counts in the first of them; in the others it is a tombstone.

    Args:
        shards: Names and indexes.
        live: The samples that have an image and a caption.
        held_out: Share of the images that are held out from training.
        repeats: How often the images stand in an epoch; None if each does once.
    """
    earlier: set[SampleId] = set()
    joined = []
    for name, index in sorted(shards, key=lambda shard: shard[0]):
        tombstones, not_trained_on = [], []
        for i, entry in enumerate(index.samples):
            if entry.id not in live or entry.id in earlier:
                tombstones.append(i)
            elif is_held_out(entry.image, held_out):
                not_trained_on.append(i)
            earlier.add(entry.id)
        count = len(index.samples)
        joined.append(
            Shard(name, _bucket(name), count, index.bytes, index.sha256, tuple(not_trained_on), tuple(tombstones))
        )
        if repeats is not None:
            images = [entry.image for entry in index.samples]
            joined[-1] = replace(joined[-1], repeats=repeats.of_shard(images, joined[-1].train))
    return joined


def _bucket(name: str) -> tuple[int, int]:
    """Return height and width from a shard's name, ``shards/<H>x<W>/<digest>``."""
    height, width = name.split("/")[1].split("x")
    return int(height), int(width)


def _accepted(
    files: IndexFiles, groups: Sequence[str], held_out: float, variants: int | None, members: Sequence[UnionMember]
) -> tuple[set[SampleId], dict[str, int], NotedCaptions, dict[str, int]]:
    """Return the samples that the dataset should have, how many captions each author wrote, and some captions.

    The last part is each image's source, by its number in the union; it is empty if there is but one source.
    """
    number_of = {member.label: number for number, member in enumerate(members)}
    owners: dict[str, int] = {}
    live: set[SampleId] = set()
    authors: Counter[str] = Counter()
    notes = CaptionNotes()
    for group in groups:
        records = read_accepted(files.captions, group)
        authors.update(count_authors(records))
        rejected = {rejection.sha256 for rejection in read_latents_rejections(files.records, group)}
        count = read_variants(files.records, group) if variants is None else variants
        for record in records:
            if record.sha256 not in rejected:
                if members:
                    owners[record.sha256] = number_of[split_name(record.name)[0]]
                texts = [caption.text for caption in record.captions]
                live.update(sample_ids(record.sha256, texts, count))
                notes.add(texts, is_held_out(record.sha256, held_out))
    return live, dict(sorted(authors.items(), key=lambda item: (-item[1], item[0]))), notes.result(), owners


def _whole_shards(files: IndexFiles, groups: Sequence[str], progress: Progress) -> list[tuple[str, ShardIndex]]:
    """Return every whole shard of the groups and of the version before; each other one is skipped and reported."""
    storage, committed = files.dataset, read_dataset(files.dataset, files.caption_set)
    names = {shard.name for shard in committed.shards} if committed else set()
    for group in groups:
        encoded = read_group(files.records, group)
        if encoded is None:
            raise DataError(f"group {group} is not encoded in {files.records.url}; run the latents step for it first")
        names.update(encoded.shards)
    whole = []
    # In a store each index is one request, and many requests at a time take hardly longer than one.
    with ThreadPoolExecutor(READERS) as pool:
        indexes = pool.map(partial(find_whole, storage), sorted(names))
        for name, index in progress.track(zip(sorted(names), indexes, strict=True), "shards indexed", len(names)):
            if index is not None:
                whole.append((name, index))
            else:
                progress.event("shard-lost", shard=name, storage=storage.url)
    return whole


def _lengths(files: IndexFiles) -> dict[str, int]:
    lengths = read_caption_lengths(files.records)
    return lengths.total if lengths else {}


def _rejections(files: IndexFiles, groups: Sequence[str]) -> list[Rejection]:
    rejections = read_ingest_rejections(files.workdir, files.source_id)
    for group in groups:
        rejections += read_caption_rejections(files.captions, group)
        rejections += read_clean_rejections(files.captions, group)
        rejections += read_latents_rejections(files.records, group)
    return sorted(rejections, key=lambda rejection: (rejection.name, rejection.step, rejection.reason))


def _check(dataset: Dataset, live: set[SampleId], rejections: Sequence[Rejection], config: IndexConfig) -> None:
    if dataset.samples < len(live):
        raise DataError(
            f"{len(live) - dataset.samples} of {len(live)} accepted samples are in no whole shard of "
            f"{dataset.encoding_key}; run the latents step for all groups again"
        )
    if dataset.images == dataset.held_out:
        reasons = sorted({rejection.reason for rejection in rejections})
        raise DataError(
            f"nothing to train on: {dataset.images} images, {dataset.held_out} of them held out, "
            f"{dataset.rejected} rejected ({', '.join(reasons) or 'none'}); "
            f"add images, or lower index.held_out (now {config.held_out})"
        )
