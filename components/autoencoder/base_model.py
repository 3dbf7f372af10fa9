"""The base model of a run: an existing one unchanged, or one made here from the source's own images."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from components.autoencoder.caption_check import TokenLimit, count_tokens
from components.autoencoder.config import ModelConfig, ScratchConfig
from components.dataset.versions import is_held_out
from components.digests import digest_file, short
from components.errors import ConfigError, DataError, ImageRejected
from components.image.framing import frame
from components.image.records import CaptionRecord, captions_prefix, read_accepted, read_manifest
from components.image.sources import Source, open_images
from components.model.architecture import Architecture
from components.model.locations import (
    check_parts,
    fetch,
    is_hub_name,
    pin,
    quiet_libraries,
    reproducible,
    select_device,
)
from components.model.manifest import COMMIT, commit_model
from components.progress import Progress
from components.storage.base import Storage
from components.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from components.autoencoder.training import Pixels

FORMAT = 2  # 1 had a tokenizer that knew captions beside the images only
# Of more, the tokenizer learns from those of the images with the smallest digests.
_MOST_CAPTIONS = 1_000_000


@dataclass(frozen=True)
class TrainingData:
    """What a model made from scratch learns from: the images that are trained on, with their captions.

    Attributes:
        source_id: The source of the images, as ingest named it.
        caption_set: The captions, and which images are accepted.
        texts: What decides the captions besides the images, as JSON.
        held_out: Share of the images that are never trained on; the autoencoder is not trained on them either.
        reject_equal: Whether different captions that the text encoder cuts to the same tokens are an error.
        text_chunks: In how many chunks captions are read.
    """

    source_id: str
    caption_set: str
    texts: Any
    held_out: float
    reject_equal: bool = True
    text_chunks: int = 1

    def images(self, workdir: Storage) -> Iterator[CaptionRecord]:
        """Yield the images in the order of their digests, group by group, so that few are in memory."""
        captions = workdir.child(captions_prefix(self.caption_set))
        for group in read_manifest(workdir, self.source_id).groups:
            for image in read_accepted(captions, group):
                if not is_held_out(image.sha256, self.held_out):
                    yield image


def ensure_base(
    config: ModelConfig,
    seed: int,
    data: TrainingData,
    workdir: Storage,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Return the base model of a run. If the settings name none, it is made, unless it exists already.

    Args:
        config: Settings of the model.
        seed: Of its weights, of the batches and of the noise.
        data: The images and captions that it learns from.
        workdir: The storage of all files.
        progress: Reports what happens.
        clock: Seconds that never go backwards.

    Returns:
        ``base_model`` (what ``components.model.locations.fetch`` takes), ``trained`` and ``seconds``.

    Raises:
        ConfigError: If the base cannot be used, or the training diverges.
        DataError: If there is no image to learn from, or different captions become equal.
    """
    start = clock()
    if config.base is not None:
        return {"base_model": _existing(config, workdir), "trained": False, "seconds": round(clock() - start, 3)}
    name = f"models/base/{base_key(config, seed, data, read_manifest(workdir, data.source_id).place)}"
    absent = not workdir.exists(f"{name}/{COMMIT}")
    if absent:
        _make(config.scratch, seed, data, workdir, workdir.child(name), progress)
    return {"base_model": f"workdir:{name}", "trained": absent, "seconds": round(clock() - start, 3)}


def base_key(config: ModelConfig, seed: int, data: TrainingData, place: str) -> str:
    """Return the name of a model made from scratch of the images in a place.

    The list of images is not part of it, on purpose: new images must not change the autoencoder, or every latent would
    have to be computed again. The share held out is: the model must not have been trained on a held-out image. So are
    the settings that change captions: with others the tokenizer would know other words.
    """
    return short([FORMAT, config.scratch.model_dump(mode="json"), seed, place, data.texts, data.held_out])


def select_images(images: Iterable[CaptionRecord], most: int) -> list[CaptionRecord]:
    """Return the images to train on: the first by digest, which is a random choice that is the same each time."""
    return heapq.nsmallest(most, images, key=lambda image: image.sha256)


def _existing(config: ModelConfig, workdir: Storage) -> str:
    assert config.base is not None
    if config.revision is not None and not is_hub_name(config.base):
        raise ConfigError(
            f"model.revision is {config.revision!r}, but model.base {config.base!r} is no repository of the hub; "
            "remove the revision"
        )
    uri = config.base if config.revision is None else f"{config.base}@{config.revision}"
    folder = fetch(uri, workdir)
    check_parts(folder, uri)
    return pin(uri, folder)


def _make(
    config: ScratchConfig,
    seed: int,
    data: TrainingData,
    workdir: Storage,
    target: Storage,
    progress: Progress,
) -> None:
    # Imported here since torch and diffusers take seconds to load, and most runs have their model already.
    from components.autoencoder.scratch import build_scratch
    from components.autoencoder.training import normalise_latents, train_autoencoder

    quiet_libraries()
    records = select_images(data.images(workdir), config.training.max_images)
    captions = (caption.text for image in data.images(workdir) for caption in image.captions)
    manifest = read_manifest(workdir, data.source_id)
    source = open_images(manifest, workdir)
    images = _read(source, records, config.architecture, progress)
    training = config.training
    device = select_device(training.device)
    with reproducible(training.threads):
        pipeline = build_scratch(config.architecture, islice(captions, _MOST_CAPTIONS), seed)
        # Before the training, which may take long, and not only after it.
        limit = TokenLimit(pipeline.tokenizer, config.architecture.text.max_tokens, data.text_chunks)
        folder = workdir.child(captions_prefix(data.caption_set))
        count_tokens([limit], manifest.groups, folder, "", reject_equal=data.reject_equal)
        vae = pipeline.vae.to(device)
        loss = train_autoencoder(vae, images, training, seed, device, progress)
        normalise_latents(vae, images, training.batch_size, device)
    vae.to("cpu")
    _commit(pipeline, target)
    progress.event("autoencoder", images=len(images), steps=training.steps, loss=round(loss, 6))


def _read(source: Source, records: list[CaptionRecord], architecture: Architecture, progress: Progress) -> Pixels:
    """Read the images, ``[N, H, W, 3]``; those that were removed since they were captioned are skipped."""
    side = architecture.resolution
    images = np.empty((len(records), side, side, 3), dtype=np.uint8)
    count = 0
    for record in progress.track(records, "images read", len(records)):
        try:
            images[count] = frame(source.read(record.name), side, side).pixels
        except ImageRejected:
            continue
        count += 1
    if not count:
        raise DataError(
            f"no image to train the autoencoder on: of {len(records)} accepted images that are not held out, none can "
            "be read; add images, lower index.held_out, or set model.base"
        )
    return images[:count]


def _commit(pipeline: Any, target: Storage) -> None:
    with scratch_folder("base") as root:
        pipeline.save_pretrained(root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for path in files:
            target.upload(path.relative_to(root).as_posix(), path)
        digests = {path.relative_to(root).as_posix(): digest_file(path) for path in files}
    commit_model(target, digests, FORMAT)
