"""One partition group, encoded: what is not in a shard yet goes into new ones, what is there is left alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from components.dataset import EMPTY_CAPTION, read_dataset, read_group, write_encoding, write_group
from components.digests import sha256, short
from components.errors import ConfigError, DataError, ImageRejected
from components.framing import Frame, frame
from components.latents.config import LatentsConfig
from components.latents.encoding import encoding
from components.latents.plan import NewShard, pair_of, plan
from components.manifest import CaptionRecord, ancestors, read_captions, read_manifest
from components.models import fetch, reproducible
from components.progress import Progress
from components.shards import Sample, SampleId, find_whole, index_key, npy, pack, tar_key
from components.sources import Source, open_source
from components.storage import Storage

if TYPE_CHECKING:
    from components.latents.encoders import Encoders

T = TypeVar("T")
R = TypeVar("R")


def encode(
    config: LatentsConfig,
    group: str,
    source_id: str,
    encoding_key: str,
    base_model: str,
    workdir: Storage,
    progress: Progress,
) -> dict[str, Any]:
    """Encode one group's accepted images and their captions.

    It can be killed at any moment and started again: finished shards are kept, and the new ones come out with the
    same names and the same bytes.

    Args:
        config: Settings.
        group: Name of the partition group.
        source_id: Where the images are, as ingest named it.
        encoding_key: What ``encoding_key`` of this model and these settings gives; the dataset's folder.
        base_model: The model whose encoders are used, as ``components.models.fetch`` takes it.
        workdir: Where everything is kept.
        progress: Told each image.

    Returns:
        ``group``, ``encoded`` (images encoded now), ``reused`` (encoded before) and ``shards`` (that hold the group).

    Raises:
        ConfigError: Where the key is of another model or of other settings.
        DataError: Where an image has changed since it was accepted, or its latents do not fit fp16.
    """
    base = fetch(base_model, workdir)
    dataset = workdir.child(f"datasets/{encoding_key}")
    made_from = encoding(base, config)
    if short(made_from) != encoding_key:
        raise ConfigError(f"encoding key {encoding_key} is not that of {base_model} with these settings")
    records = read_captions(dataset, group)
    todo = plan(records, _known(dataset, group), config.bucket, config.shard_samples)
    pending = [shard for shard in todo.new if find_whole(dataset, shard.name) is None]
    encoded = sum(len(shard.records) for shard in pending)
    if pending or not dataset.exists(EMPTY_CAPTION):
        source = open_source(read_manifest(workdir, source_id).source)
        _encode(config, base, pending, source, dataset, progress)
    write_encoding(dataset, made_from)
    names = sorted({*todo.reused, *(shard.name for shard in todo.new)})
    write_group(dataset, group, names)
    return {"group": group, "encoded": encoded, "reused": len(records) - encoded, "shards": len(names)}


def _known(dataset: Storage, group: str) -> dict[SampleId, str]:
    """Return the shard of each sample that the committed dataset, this group's last encoding or a parent's holds."""
    committed = read_dataset(dataset)
    names = {shard.name for shard in committed.shards} if committed else set()
    for one in (group, *ancestors(group)):
        names.update(read_group(dataset, one) or ())
    known: dict[SampleId, str] = {}
    for name in sorted(names):
        index = find_whole(dataset, name)
        for entry in index.samples if index else ():
            known.setdefault(entry.id, name)
    return known


def _encode(
    config: LatentsConfig,
    base: Path,
    pending: Sequence[NewShard],
    source: Source,
    dataset: Storage,
    progress: Progress,
) -> None:
    from components.latents.encoders import Encoders  # torch takes seconds to import; a run without news needs none

    encoders = Encoders(base, config)
    with reproducible(config.threads):
        if not dataset.exists(EMPTY_CAPTION):
            dataset.write(EMPTY_CAPTION, npy(encoders.text("")))
        total = sum(len(shard.records) for shard in pending)
        for _ in progress.track(_shards(config, pending, source, dataset, encoders), "images encoded", total):
            pass


def _shards(
    config: LatentsConfig, pending: Sequence[NewShard], source: Source, dataset: Storage, encoders: Encoders
) -> Iterator[CaptionRecord]:
    """Make the pending shards one after the other, and yield each image once it is encoded.

    The batches begin anew with each shard, so that a shard's bytes do not depend on those made before it.
    """

    def read(wanted: tuple[CaptionRecord, tuple[int, int]]) -> Frame:
        record, (height, width) = wanted
        return _frame(source, record, height, width)

    wanted = ((record, shard.bucket) for shard in pending for record in shard.records)
    with closing(read_ahead(read, wanted, config.decode_threads, ahead=2 * config.batch_size)) as frames:
        for shard in pending:
            samples: list[Sample] = []
            for first in range(0, len(shard.records), config.batch_size):
                records = shard.records[first : first + config.batch_size]
                samples += _batch(records, list(islice(frames, len(records))), encoders)
                yield from records
            data, index = pack(samples)
            dataset.write(tar_key(shard.name), data)
            dataset.write(index_key(shard.name), index)


def _batch(records: Sequence[CaptionRecord], frames: Sequence[Frame], encoders: Encoders) -> Iterator[Sample]:
    moments = encoders.moments(np.stack([framed.pixels for framed in frames]))
    for record, framed, moment in zip(records, frames, moments, strict=True):
        text = encoders.text(record.captions[0].text)
        for what, array in (("latents", moment), ("caption's embedding", text)):
            if not np.isfinite(array).all():
                raise DataError(
                    f"image {record.name!a} ({record.sha256[:16]}…): its {what} overflows fp16 or is not a number; "
                    "set latents.vae_dtype and latents.text_dtype to fp32, or remove the image"
                )
        yield Sample(record.sha256, moment, text, _meta(record, framed))


def _meta(record: CaptionRecord, framed: Frame) -> dict[str, Any]:
    height, width, _ = framed.pixels.shape
    return {
        "sha256": record.sha256,
        "caption": record.captions[0].text,
        "caption_by": record.captions[0].by,
        "caption_digest": pair_of(record)[1],
        "license": record.license,
        "source": record.source,
        "original_size": list(framed.original_size),
        "crop": list(framed.crop),
        "bucket": [height, width],
    }


def _frame(source: Source, record: CaptionRecord, height: int, width: int) -> Frame:
    """Read one image, cut to size, once it is proven to be the one that was accepted."""
    try:
        data = source.read(record.name)
        if sha256(data) == record.sha256:
            return frame(data, height, width)
        found = f"its digest is {sha256(data)[:16]}…"
    except ImageRejected as error:
        found = str(error)
    raise DataError(
        f"image {record.name!a}: {found}; expected the image that was accepted, with digest {record.sha256[:16]}…. "
        "It has changed since; run the pipeline again"
    )


def read_ahead(read: Callable[[T], R], wanted: Iterable[T], threads: int, ahead: int) -> Generator[R, None, None]:
    """Yield ``read`` of each wanted thing in order, while threads work on at most ``ahead`` of those that follow."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[R]] = deque()
    try:
        for thing in wanted:
            waiting.append(pool.submit(read, thing))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
