"""Makes the planned shards: images are decoded ahead of the encoder, and finished shards are written behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from math import prod
from typing import NamedTuple, TypeVar

import numpy as np

from components.dataset.format import Sample, index_key, pack, tar_key
from components.digests import sha256
from components.errors import DataError, ImageRejected
from components.image.buckets import Bucket
from components.image.framing import PLAIN, Frame, View
from components.image.records import CaptionRecord
from components.image.sources import Source
from components.latents.config import LatentsConfig
from components.latents.encoders import Encoders, Moments
from components.latents.image_decoder import Decoder, open_decoder
from components.latents.plan import NewShard, PlannedImage
from components.latents.rejected import RejectedImages
from components.latents.samples import EncodedView, samples_of
from components.latents.variants import view_of
from components.storage.base import Storage

T = TypeVar("T")
R = TypeVar("R")
_UNFIT = "overflows fp16 or is not a number"

# An image read and decoded: a frame for each view, or why it is rejected; None if it was rejected before.
DecodedImage = list[tuple[View, Frame]] | ImageRejected | None


class ShardMaker:
    """Makes the shards of one group.

    Args:
        config: Settings.
        source: The source of the images.
        dataset: The dataset's folder, which the shards are written to.
        encoders: The encoders, loaded.
        rejected: The images rejected so far; others are added to it.
    """

    def __init__(
        self, config: LatentsConfig, source: Source, dataset: Storage, encoders: Encoders, rejected: RejectedImages
    ) -> None:
        self._config = config
        self._source = source
        self._dataset = dataset
        self._encoders = encoders
        self._rejected = rejected
        self._proven = False  # whether the autoencoder has given finite numbers for any image

    def make(self, shards: Sequence[NewShard]) -> Iterator[CaptionRecord]:
        """Make shards one after the other, and yield each image once it is encoded or rejected.

        The batches begin anew with each shard, so that a shard's bytes do not depend on those made before it.

        Raises:
            DataError: If the encoders, rather than an image, give numbers that do not fit fp16.
            StorageError: If an image cannot be read or a shard cannot be written; a retry may help.
        """
        config = self._config
        views = max((len(image.variants) for shard in shards for image in shard.images), default=1)
        frames_size = max((3 * prod(shard.bucket) for shard in shards), default=1) * views
        threads = max(config.decode.threads, config.decode.workers)
        images = ((image, shard.bucket) for shard in shards for image in shard.images)
        with closing(open_decoder(config.decode, frames_size)) as decoder, ThreadPoolExecutor(1, "write") as writer:
            decode = partial(self._decode, decoder)
            with closing(read_ahead(decode, images, threads, ahead=-(-2 * config.batch_size // views))) as decoded:
                write: Future[None] | None = None
                for shard in shards:
                    samples = yield from self._encode(shard, decoded)
                    if write is not None:
                        write.result()  # one shard is written while the next is made, not more
                    write = writer.submit(self._write, shard.without(self._rejected), samples)
                if write is not None:
                    write.result()

    def _decode(self, decoder: Decoder, planned: tuple[PlannedImage, Bucket]) -> DecodedImage:
        image, bucket = planned
        record = image.record
        if record.sha256 in self._rejected:
            return None
        settings = self._config.framing, self._config.variants
        views = [view_of(record.sha256, number, *settings) for number in image.variants]
        try:
            data = self._source.read(record.name)
            if sha256(data) != record.sha256:
                raise ImageRejected("changed", "it is not the image that was accepted; run the pipeline again")
            return list(zip(views, decoder.decode(data, bucket, views), strict=True))
        except ImageRejected as error:
            return error

    def _encode(self, shard: NewShard, decoded: Iterator[DecodedImage]) -> Generator[CaptionRecord, None, list[Sample]]:
        """Yield each image of a shard once it is encoded or rejected, and return their samples."""
        encoded: dict[tuple[str, int], EncodedView] = {}
        started: deque[tuple[list[_PendingView], Moments]] = deque()
        views = self._views(shard, decoded)
        # Rejected images leave gaps in their batches, so that a batch is the same whenever they were rejected.
        while batch := list(islice(views, self._config.batch_size)):
            if pending := [view for view in batch if view.frame is not None]:
                pixels = np.stack([view.frame.pixels for view in pending if view.frame is not None])
                started.append((pending, self._encoders.moments(pixels)))
            if len(started) > 1:  # a GPU gets the next batch before this one's results are waited for
                self._finish(*started.popleft(), encoded)
            yield from (view.record for view in batch if view.last)
        for pending, moments in started:
            self._finish(pending, moments, encoded)
        return self._samples(shard, encoded)

    def _views(self, shard: NewShard, decoded: Iterator[DecodedImage]) -> Iterator[_PendingView]:
        """Yield every view of a shard's images in order, those of rejected images without a frame."""
        for image, result in zip(shard.images, decoded, strict=False):
            if isinstance(result, ImageRejected):
                self._rejected.add(image.record, result)
            frames = result if isinstance(result, list) else [(PLAIN, None)] * len(image.variants)
            for number, (view, frame) in zip(image.variants, frames, strict=True):
                yield _PendingView(image.record, number, number == image.variants[-1], view, frame)

    def _finish(
        self, pending: Sequence[_PendingView], moments: Moments, encoded: dict[tuple[str, int], EncodedView]
    ) -> None:
        values, finite = moments.wait()
        self._proven |= any(finite)
        for one, value, fits in zip(pending, values, finite, strict=True):
            if fits:
                assert one.frame is not None
                key = one.record.sha256, one.number
                encoded[key] = EncodedView(value, one.view, one.frame.original_size, one.frame.crop)
            elif self._config.vae_dtype != "fp32" or (not self._proven and len(finite) > 1):
                raise _unfit(one.record, "latents", "vae_dtype")
            else:
                self._rejected.add(one.record, ImageRejected("latents-overflow", f"its latents {_UNFIT}"))

    def _samples(self, shard: NewShard, encoded: Mapping[tuple[str, int], EncodedView]) -> list[Sample]:
        images = shard.without(self._rejected).images
        texts = self._encoders.text.encode([sample.caption.text for image in images for sample in image.samples])
        samples: list[Sample] = []
        for image in images:
            if all(texts[sample.caption.text].finite for sample in image.samples):
                samples += samples_of(image, shard.bucket, encoded, texts)
            elif self._config.text_dtype != "fp32":
                raise _unfit(image.record, "caption's embedding", "text_dtype")
            else:
                problem = ImageRejected("caption-overflow", f"its caption's embedding {_UNFIT}")
                self._rejected.add(image.record, problem)
        return samples

    def _write(self, shard: NewShard, samples: Sequence[Sample]) -> None:
        if samples:
            data, index = pack(samples)
            self._dataset.write(tar_key(shard.name), data)
            self._dataset.write(index_key(shard.name), index)


class _PendingView(NamedTuple):
    """One view of an image, to be encoded; it has no frame if the image is rejected."""

    record: CaptionRecord
    number: int
    last: bool  # of the image's views
    view: View
    frame: Frame | None


def _unfit(record: CaptionRecord, what: str, setting: str) -> DataError:
    return DataError(
        f"image {record.name!a} ({record.sha256[:16]}…): its {what} {_UNFIT}; set latents.{setting} to fp32, "
        "or use another model if it is fp32 already"
    )


def read_ahead(read: Callable[[T], R], inputs: Iterable[T], threads: int, ahead: int) -> Generator[R, None, None]:
    """Yield ``read`` of each input in order, while threads work on at most ``ahead`` of those that follow."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[R]] = deque()
    try:
        for one in inputs:
            pending.append(pool.submit(read, one))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
