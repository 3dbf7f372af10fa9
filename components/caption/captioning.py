"""Give every image of a group a caption and proof that it decodes, or a reason why it is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from components.caption.config import CaptionConfig
from components.caption.unfinished import clear_unfinished, read_unfinished, save_unfinished
from components.caption.writing import Captioning
from components.digests import digest_tree, short
from components.errors import DataError
from components.images import ImageLimits
from components.manifest import (
    CaptionRecord,
    ImageRecord,
    Outcome,
    Rejection,
    ancestors,
    captions_key,
    read_caption_rejections,
    read_captions,
    read_images,
    read_manifest,
    write_captions,
)
from components.models import fetch, is_hub_name
from components.progress import Progress
from components.sources import open_source
from components.storage import Storage

FORMAT = 2
SAVE_EVERY = 500  # images


def caption(
    config: CaptionConfig,
    limits: ImageLimits,
    group: str,
    source_id: str,
    encoding_key: str,
    workdir: Storage,
    progress: Progress,
) -> dict[str, Any]:
    """Write one group's captions; what stands from before and still holds is kept.

    Args:
        config: Who writes the captions that are not there, and what a caption may be.
        limits: Which sizes of image are taken.
        group: The partition group's name.
        source_id: The source's name, as ingest returned it.
        encoding_key: The dataset's name.
        workdir: Where ``ingest/<source-id>`` is read and ``datasets/<encoding-key>/captions`` is written.
        progress: Told of each image captioned.

    Returns:
        ``group``, ``captioned`` (images newly captioned), ``reused`` (captions kept) and ``rejected``.

    Raises:
        DataError: Where ingest has not run, or its source is gone.
        ConfigError: Where the captioner cannot be used.
    """
    dataset = workdir.child(f"datasets/{encoding_key}")
    source = open_source(read_manifest(workdir, source_id).source)
    images = read_images(workdir, source_id, group)
    versions = _versions(images, config, limits, workdir)
    kept = _kept(images, versions, dataset, group)
    new = [image for image in images if image.sha256 not in kept]
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(config.readers) as pool:
        captioning = Captioning(config, limits, source, versions, workdir)
        told = progress.track(captioning.outcomes(new, pool), "images captioned", len(new))
        while part := list(islice(told, SAVE_EVERY)):
            save_unfinished(dataset, group, part)
            outcomes += part
    everything = [*kept.values(), *outcomes]
    records = [outcome for outcome in everything if isinstance(outcome, CaptionRecord)]
    rejections = [outcome for outcome in everything if isinstance(outcome, Rejection)]
    write_captions(dataset, group, records, rejections)
    clear_unfinished(dataset, group)
    reused = sum(isinstance(outcome, CaptionRecord) for outcome in kept.values())
    return {"group": group, "captioned": len(records) - reused, "reused": reused, "rejected": len(rejections)}


def _kept(
    images: Iterable[ImageRecord], versions: Mapping[str, str], dataset: Storage, group: str
) -> dict[str, Outcome]:
    """Return the outcomes of earlier runs that still hold, under the names that the images have now."""
    known = _known(dataset, group)
    return {
        image.sha256: replace(known[image.sha256], name=image.name)
        for image in images
        if image.sha256 in known and versions[image.sha256] and _version(known[image.sha256]) == versions[image.sha256]
    }


def _versions(
    images: Iterable[ImageRecord], config: CaptionConfig, limits: ImageLimits, workdir: Storage
) -> dict[str, str]:
    """Return what each image's caption rests on besides the image, as one digest.

    It is empty for an image whose caption file has no modification tag: nobody can say that it is unchanged.
    """
    settings = config.model_dump(include={"prompt", "max_new_tokens", "missing", "max_characters"})
    settings |= {"format": FORMAT, "limits": limits.model_dump(), "model": _model_identity(config, workdir)}
    base = short(settings)
    return {
        image.sha256: short([base, asdict(image.caption) if image.caption else None])
        if image.caption is None or image.caption.modified
        else ""
        for image in images
    }


def _model_identity(config: CaptionConfig, workdir: Storage) -> str | None:
    """Return what changes when the captioner does: a hub repository's name and revision, a folder's content."""
    name = config.captioner
    return name if name is None or is_hub_name(name) else digest_tree(fetch(name, workdir), ["."])


def _known(dataset: Storage, group: str) -> dict[str, Outcome]:
    """Return what earlier runs made of the group's images, finished or not."""
    outcomes: list[Outcome] = []
    for one in reversed((group, *ancestors(group))):  # what stands later counts
        outcomes += read_unfinished(dataset, one)
        if dataset.exists(captions_key(one)):
            with suppress(DataError):  # records that another version of Darkroom wrote are written anew
                outcomes += read_captions(dataset, one)
                outcomes += read_caption_rejections(dataset, one)
    return {outcome.sha256: outcome for outcome in outcomes if outcome.sha256 is not None}


def _version(outcome: Outcome) -> str:
    return outcome.caption_version if isinstance(outcome, CaptionRecord) else outcome.version
