"""The base model of a run: an existing one unchanged, or one made here from the source's own images."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from components.autoencoder.config import ModelConfig, ScratchConfig
from components.dataset.versions import is_held_out
from components.digests import digest_file, short
from components.errors import ConfigError, DataError, ImageRejected
from components.image.framing import frame
from components.image.records import ImageRecord, read_images, read_manifest
from components.image.sources import Source, open_source
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

FORMAT = 1
# A longer caption is not used here; ingest or caption rejects it.
_LONGEST_CAPTION = 65_536


def ensure_base(
    config: ModelConfig,
    seed: int,
    source_id: str,
    held_out: float,
    workdir: Storage,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Return the base model of a run. If the settings name none, it is made, unless it exists already.

    Args:
        config: Settings of the model.
        seed: Of its weights, of the batches and of the noise.
        source_id: The source whose images and captions it learns from.
        held_out: Share of the images that are never trained on; the autoencoder is not trained on them either.
        workdir: The storage of all files.
        progress: Reports what happens.
        clock: Seconds that never go backwards.

    Returns:
        ``base_model`` (what ``components.model.locations.fetch`` takes), ``trained`` and ``seconds``.

    Raises:
        ConfigError: If the base cannot be used, or the training diverges.
        DataError: If there is no image to learn from.
    """
    start = clock()
    if config.base is not None:
        return {"base_model": _existing(config, workdir), "trained": False, "seconds": round(clock() - start, 3)}
    name = f"models/base/{base_key(config, seed, source_id, held_out)}"
    absent = not workdir.exists(f"{name}/{COMMIT}")
    if absent:
        _make(config.scratch, seed, source_id, held_out, workdir, workdir.child(name), progress)
    return {"base_model": f"workdir:{name}", "trained": absent, "seconds": round(clock() - start, 3)}


def base_key(config: ModelConfig, seed: int, source_id: str, held_out: float) -> str:
    """Return the name of a model made from scratch.

    The list of images is not part of it, on purpose: new images must not change the autoencoder, or every latent would
    have to be computed again. The share held out is: the model must not have been trained on a held-out image.
    """
    return short([FORMAT, config.scratch.model_dump(mode="json"), seed, source_id, held_out])


def select_images(images: Iterable[ImageRecord], held_out: float, most: int) -> list[ImageRecord]:
    """Return the images to train on: those not held out, and of these the first by digest, which is a random choice."""
    usable = (image for image in images if not is_held_out(image.sha256, held_out))
    return heapq.nsmallest(most, usable, key=lambda image: image.sha256)


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
    source_id: str,
    held_out: float,
    workdir: Storage,
    target: Storage,
    progress: Progress,
) -> None:
    # Imported here since torch and diffusers take seconds to load, and most runs have their model already.
    from components.autoencoder.scratch import build_scratch
    from components.autoencoder.training import normalise_latents, train_autoencoder

    quiet_libraries()
    manifest = read_manifest(workdir, source_id)
    all_images = (image for group in manifest.groups for image in read_images(workdir, source_id, group))
    records = select_images(all_images, held_out, config.training.max_images)
    source = open_source(manifest.source)
    captions = list(_captions(source, records))
    images = _read(source, records, config.architecture, progress)
    training = config.training
    device = select_device(training.device)
    with reproducible(training.threads):
        pipeline = build_scratch(config.architecture, captions, seed)
        vae = pipeline.vae.to(device)
        loss = train_autoencoder(vae, images, training, seed, device, progress)
        normalise_latents(vae, images, training.batch_size, device)
    vae.to("cpu")
    _commit(pipeline, target)
    progress.event("autoencoder", images=len(images), steps=training.steps, loss=round(loss, 6))


def _captions(source: Source, records: Iterable[ImageRecord]) -> Iterator[str]:
    """Yield the images' captions that can be read; the tokenizer learns its words from them."""
    for sidecar in (record.caption for record in records):
        if sidecar is None or sidecar.bytes > _LONGEST_CAPTION:
            continue
        if sidecar.text is not None:
            yield sidecar.text.strip()
        else:
            try:
                yield source.read(sidecar.name).decode("utf-8", "replace").strip()
            except ImageRejected:
                continue  # the caption step rejects it


def _read(source: Source, records: list[ImageRecord], architecture: Architecture, progress: Progress) -> Pixels:
    """Read the images, ``[N, H, W, 3]``; those that cannot be decoded are skipped, since caption will reject them."""
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
            f"no image to train the autoencoder on: of {len(records)} images that are not held out, none can be "
            "decoded; add images, lower index.held_out, or set model.base"
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
