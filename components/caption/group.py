"""Give every image of a group captions and proof that it decodes, or a reason why it is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from components.caption import processes
from components.caption.config import CaptionConfig
from components.caption.image_captions import Captioning, Draft
from components.caption.job import Job
from components.caption.resume import clear_unfinished, read_unfinished, save_unfinished
from components.errors import DataError
from components.image.decoding import ImageLimits
from components.image.records import (
    CaptionRecord,
    ImageOutcome,
    ImageRecord,
    Rejection,
    ancestors,
    captions_key,
    read_caption_rejections,
    read_captions,
    read_images,
    write_captions,
)
from components.progress import Progress
from components.storage.base import Storage

SAVE_EVERY = 500  # images
SAVE_MODELS_EVERY = 64  # images, of those that a model captions: it takes seconds for each


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
        config: Where captions come from, and what a caption may be.
        limits: Which sizes of image are taken.
        group: The partition group's name.
        source_id: The source's name, as ingest returned it.
        encoding_key: The dataset's name.
        workdir: Where ``ingest/<source-id>`` is read and ``datasets/<encoding-key>/captions`` is written.
        progress: Told of each image captioned.

    Returns:
        ``group``, ``captioned`` (images newly captioned), ``reused`` (captions kept) and ``rejected``.

    Raises:
        DataError: Where ingest has not run, its source is gone, or a label file does not parse.
        ConfigError: Where the captioner cannot be used.
        OutOfMemory: Where not even one small picture fits beside the captioner.
    """
    job = Job(config, limits, group, source_id, encoding_key, workdir)
    images = read_images(workdir, source_id, group)
    captioning = job.captioning(images)
    kept = _kept(images, captioning, job.dataset, group)
    new = [image for image in images if image.sha256 not in kept]
    outcomes = list(progress.track(_outcomes(job, captioning, new, progress), "images captioned", len(new)))
    everything = [*_measured(job, captioning, images, kept, progress), *outcomes]
    records = [outcome for outcome in everything if isinstance(outcome, CaptionRecord)]
    rejections = [outcome for outcome in everything if isinstance(outcome, Rejection)]
    write_captions(job.dataset, group, records, rejections)
    clear_unfinished(job.dataset, group)
    reused = sum(isinstance(outcome, CaptionRecord) for outcome in kept.values())
    return {"group": group, "captioned": len(records) - reused, "reused": reused, "rejected": len(rejections)}


def _outcomes(
    job: Job, captioning: Captioning, new: Sequence[ImageRecord], progress: Progress
) -> Iterator[ImageOutcome]:
    """Yield the outcome of each new image; those that a model captions come last."""
    waiting: list[Draft] = []
    with ThreadPoolExecutor(job.config.readers) as pool:

        def written() -> Iterator[list[ImageOutcome]]:
            for outcome in captioning.from_words(new, pool):
                if isinstance(outcome, Draft):
                    waiting.append(outcome)
                else:
                    yield [outcome]

        yield from saved(written(), job, SAVE_EVERY)
        if waiting:
            yield from _by_models(job, captioning, waiting, pool, progress)


def _measured(
    job: Job,
    captioning: Captioning,
    images: Iterable[ImageRecord],
    kept: Mapping[str, ImageOutcome],
    progress: Progress,
) -> list[ImageOutcome]:
    """Return the outcomes that are kept, records with what the filters want to know now."""
    wanting = [
        (known, image)
        for image in images
        if isinstance(known := kept.get(image.sha256), CaptionRecord) and captioning.wants_another_look(known)
    ]
    if not wanting:
        return list(kept.values())
    with ThreadPoolExecutor(job.config.readers) as pool:
        again = progress.track(captioning.measured_again(wanting, pool), "images measured", len(wanting))
        measured = {outcome.sha256: outcome for outcome in again}
    return [measured.get(sha256, known) for sha256, known in kept.items()]


def _by_models(
    job: Job, captioning: Captioning, drafts: Sequence[Draft], pool: ThreadPoolExecutor, progress: Progress
) -> Iterator[Outcome]:
    count = processes.count_processes(job.config)
    if count > 1:
        yield from processes.caption(job, [draft.image.sha256 for draft in drafts], count, progress)
        return
    from components.caption.models.captioner import Captioner  # here, since torch takes long to import

    captioner = Captioner(job.config, job.workdir, progress)
    parts = processes.batches(drafts, job.config.batch_size)
    yield from saved(captioning.by_model(parts, captioner, pool), job, SAVE_MODELS_EVERY)


def saved(parts: Iterable[list[ImageOutcome]], job: Job, every: int) -> Iterator[ImageOutcome]:
    """Yield outcomes, saving them on the way.

    A part is never torn: batches of a model's that a killed step left undone are the same when it is started again.

    Args:
        parts: Outcomes in parts.
        job: Whose they are.
        every: How many outcomes are saved at once, at least.
    """
    unsaved: list[ImageOutcome] = []
    for part in parts:
        unsaved += part
        if len(unsaved) >= every:
            save_unfinished(job.dataset, job.group, unsaved)
            yield from unsaved
            unsaved = []
    if unsaved:
        save_unfinished(job.dataset, job.group, unsaved)
        yield from unsaved


def _kept(
    images: Iterable[ImageRecord], captioning: Captioning, dataset: Storage, group: str
) -> dict[str, ImageOutcome]:
    """Return the outcomes of earlier runs that still hold, as of the images that there are now."""
    known = _known(dataset, group)
    kept = {
        image.sha256: captioning.screening.renewed(_renewed(known[image.sha256], image))
        for image in images
        if image.sha256 in known and captioning.holds(image, _version(known[image.sha256]))
    }
    return {sha256: outcome for sha256, outcome in kept.items() if outcome is not None}


def _known(dataset: Storage, group: str) -> dict[str, ImageOutcome]:
    """Return what earlier runs made of the group's images, finished or not."""
    outcomes: list[ImageOutcome] = []
    for one in reversed((group, *ancestors(group))):  # what stands later counts
        outcomes += read_unfinished(dataset, one)
        if dataset.exists(captions_key(one)):
            with suppress(DataError):  # records that another version of Darkroom wrote are written anew
                outcomes += read_captions(dataset, one)
                outcomes += read_caption_rejections(dataset, one)
    return {outcome.sha256: outcome for outcome in outcomes if outcome.sha256 is not None}


def _renewed(known: ImageOutcome, image: ImageRecord) -> ImageOutcome:
    """Return an outcome with what an image's record has to say now and what no caption rests on."""
    if isinstance(known, Rejection):
        return replace(known, name=image.name)
    return replace(known, name=image.name, license=image.license, source=image.source)


def _version(outcome: ImageOutcome) -> str:
    return outcome.caption_version if isinstance(outcome, CaptionRecord) else outcome.version
