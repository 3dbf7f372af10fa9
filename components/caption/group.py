"""Give every image of a group captions and proof that it decodes, or a reason for its rejection."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from components.caption import processes
from components.caption.config import CaptionConfig
from components.caption.image_captions import Draft, ImageCaptions
from components.caption.job import CaptionJob, GroupCaptions
from components.caption.resume import clear_unfinished, read_unfinished, save_unfinished
from components.errors import DamagedFile, DataError, NotFound
from components.image.decoding import ImageLimits
from components.image.records import (
    CaptionRecord,
    ImageOutcome,
    ImageRecord,
    Rejection,
    captions_key,
    read_caption_rejections,
    read_captions,
    read_images,
    write_captions,
)
from components.progress import Progress
from components.storage.base import Storage

SAVE_EVERY = 500  # images
SAVE_MODELS_EVERY = 64  # images that a model captions: it takes seconds for each


def caption(
    config: CaptionConfig,
    limits: ImageLimits,
    group: str,
    source_id: str,
    caption_set: str,
    workdir: Storage,
    progress: Progress,
) -> dict[str, Any]:
    """Write one group's captions; earlier ones that still hold are kept.

    Args:
        config: The sources of captions, and the rules for them.
        limits: The sizes of image that are accepted.
        group: The partition group's name.
        source_id: The source's name, as ingest returned it.
        caption_set: Name of the caption set, ``<source-id>/<caption-key>``.
        workdir: Where ``ingest/<source-id>`` is read and ``captions/<caption-set>`` is written.
        progress: Shows the images captioned.

    Returns:
        ``group``, ``captioned`` (images newly captioned), ``reused`` (captions kept) and ``rejected``.

    Raises:
        DataError: If ingest has not run, its source is gone, or a label file does not parse.
        ConfigError: If a captioner cannot be used.
        OutOfMemory: If not even one small image fits into memory beside the captioner.
    """
    job = CaptionJob(config, limits, group, source_id, caption_set, workdir)
    images = read_images(workdir, source_id, group)
    image_captions = job.image_captions(images)
    kept = _kept(images, image_captions, job)
    new = [image for image in images if image.sha256 not in kept]
    outcomes = list(progress.track(_outcomes(job, image_captions, new, progress), "images captioned", len(new)))
    everything = [*_measured(job, image_captions, images, kept, progress), *outcomes]
    records = [outcome for outcome in everything if isinstance(outcome, CaptionRecord)]
    rejections = [outcome for outcome in everything if isinstance(outcome, Rejection)]
    write_captions(job.captions, group, records, rejections)
    clear_unfinished(job.captions, group)
    reused = sum(isinstance(outcome, CaptionRecord) for outcome in kept.values())
    return {"group": group, "captioned": len(records) - reused, "reused": reused, "rejected": len(rejections)}


def _outcomes(
    job: CaptionJob, image_captions: ImageCaptions, new: Sequence[ImageRecord], progress: Progress
) -> Iterator[ImageOutcome]:
    """Yield the outcome of each new image; those that a model captions come last."""
    waiting: list[Draft] = []
    with ThreadPoolExecutor(job.config.readers) as pool:

        def from_text() -> Iterator[list[ImageOutcome]]:
            for outcome in image_captions.from_text(new, pool):
                if isinstance(outcome, Draft):
                    waiting.append(outcome)
                else:
                    yield [outcome]

        yield from saved(from_text(), job, SAVE_EVERY)
        if waiting:
            yield from _by_models(job, image_captions, waiting, pool, progress)


def _measured(
    job: CaptionJob,
    image_captions: ImageCaptions,
    images: Iterable[ImageRecord],
    kept: Mapping[str, ImageOutcome],
    progress: Progress,
) -> list[ImageOutcome]:
    """Return the outcomes that are kept, records with what the filters need now."""
    unmeasured = [
        (record, image)
        for image in images
        if isinstance(record := kept.get(image.sha256), CaptionRecord) and image_captions.needs_measuring(record)
    ]
    if not unmeasured:
        return list(kept.values())
    with ThreadPoolExecutor(job.config.readers) as pool:
        outcomes = image_captions.measure_again(unmeasured, pool)
        tracked = progress.track(outcomes, "images measured", len(unmeasured))
        measured = {outcome.sha256: outcome for outcome in tracked}
    return [measured.get(sha256, outcome) for sha256, outcome in kept.items()]


def _by_models(
    job: CaptionJob,
    image_captions: ImageCaptions,
    drafts: Sequence[Draft],
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> Iterator[ImageOutcome]:
    count = processes.count_processes(job.config)
    if count > 1:
        yield from processes.caption_in_processes(job, [draft.image.sha256 for draft in drafts], count, progress)
        return
    from components.caption.models.captioner import Captioner  # here, since torch takes long to import

    captioner = Captioner(job.config, job.workdir, progress)
    parts = processes.batches(drafts, job.config.batch_size)
    yield from saved(image_captions.from_models(parts, captioner, pool), job, SAVE_MODELS_EVERY)


def saved(parts: Iterable[list[ImageOutcome]], job: CaptionJob, every: int) -> Iterator[ImageOutcome]:
    """Yield outcomes, saving them on the way.

    A part is never cut: a step that is killed and started again makes the same batches of the images that remain.

    Args:
        parts: Outcomes in parts, such as batches.
        job: The group they belong to.
        every: How many outcomes are saved at once, at least.
    """
    unsaved: list[ImageOutcome] = []
    for part in parts:
        unsaved += part
        if len(unsaved) >= every:
            save_unfinished(job.captions, job.group, unsaved)
            yield from unsaved
            unsaved = []
    if unsaved:
        save_unfinished(job.captions, job.group, unsaved)
        yield from unsaved


def _kept(images: Sequence[ImageRecord], image_captions: ImageCaptions, job: CaptionJob) -> dict[str, ImageOutcome]:
    """Return the outcomes of earlier runs that still hold, for the images of now.

    They are in this caption set, or, if an image is not, in another: an outcome says what it depends on, so neither
    another threshold nor another source that has the image sends it to a captioner again.
    """
    kept: dict[str, ImageOutcome] = {}
    missing = {image.sha256: image for image in images}
    outcomes = chain([_earlier(job.own_captions(), missing)], map(partial(_of_others, missing), job.other_captions()))
    for earlier in outcomes:
        for image in list(missing.values()):
            outcome = earlier.get(image.sha256)
            if outcome is not None and image_captions.holds(image, _version(outcome)):
                renewed = image_captions.screening.renewed(_renewed(outcome, image))
                if renewed is not None:
                    kept[image.sha256] = renewed
                    del missing[image.sha256]
        if not missing:
            break
    return kept


def _earlier(where: GroupCaptions, wanted: Container[str]) -> dict[str, ImageOutcome]:
    """Return the outcomes of some images in earlier runs, finished or not."""
    earlier: dict[str, ImageOutcome] = {}

    def add(outcomes: Iterable[ImageOutcome]) -> None:
        earlier.update({one.sha256: one for one in outcomes if one.sha256 is not None and one.sha256 in wanted})

    for group in where.groups:
        add(read_unfinished(where.captions, group))
        if where.captions.exists(captions_key(group)):
            with _another_format_skipped():
                add(read_captions(where.captions, group))
                add(read_caption_rejections(where.captions, group))
    return earlier


def _of_others(wanted: Container[str], where: GroupCaptions) -> dict[str, ImageOutcome]:
    """Return the outcomes of some images in another caption set; what cannot be read only saves no work."""
    with suppress(DataError, NotFound):
        return _earlier(where, wanted)
    return {}


@contextmanager
def _another_format_skipped() -> Iterator[None]:
    """Skip records of another format, which are written again; damaged ones are not captioned again without a word."""
    try:
        yield
    except DamagedFile:
        raise
    except DataError:
        pass


def _renewed(outcome: ImageOutcome, image: ImageRecord) -> ImageOutcome:
    """Return an outcome with those of an image's fields of now that no caption depends on."""
    if isinstance(outcome, Rejection):
        return replace(outcome, name=image.name)
    return replace(outcome, name=image.name, license=image.license, source=image.source)


def _version(outcome: ImageOutcome) -> str:
    return outcome.caption_version if isinstance(outcome, CaptionRecord) else outcome.version
