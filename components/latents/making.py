"""Planned shards, made: images are decoded ahead of the encoder, and finished shards are written behind it."""

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
from components.image.framing import PLAIN, Frame, View
from components.image.records import CaptionRecord
from components.image.sources import Source
from components.latents.buckets import Bucket
from components.latents.config import LatentsConfig
from components.latents.decoding import Decoder, open_decoder
from components.latents.encoders import Encoders, Moments
from components.latents.plan import NewShard, PlannedImage
from components.latents.refusals import Refusals
from components.latents.samples import EncodedView, samples_of
from components.latents.variants import view_of
from components.storage.base import Storage

T = TypeVar("T")
R = TypeVar("R")
_UNFIT = "overflows fp16 or is not a number"

# What came of reading and decoding an image: a frame for each view wanted, what is wrong with it, or None where that
# is known already.
Look = list[tuple[View, Frame]] | ImageRejected | None


class ShardMaker:
    """Makes the shards of one group.

    Args:
        config: Settings.
        source: Where the images are.
        dataset: Where the shards go.
        encoders: The encoders, loaded.
        refusals: Told of each image that cannot be encoded.
    """

    def __init__(
        self, config: LatentsConfig, source: Source, dataset: Storage, encoders: Encoders, refusals: Refusals
    ) -> None:
        self._config = config
        self._source = source
        self._dataset = dataset
        self._encoders = encoders
        self._refusals = refusals
        self._proven = False  # that the autoencoder gives numbers at all

    def make(self, shards: Sequence[NewShard]) -> Iterator[CaptionRecord]:
        """Make shards one after the other, and yield each image once it is encoded or refused.

        The batches begin anew with each shard, so that a shard's bytes do not depend on those made before it.

        Raises:
            DataError: Where the encoders, rather than an image, give numbers that do not fit fp16.
            StorageError: Where an image cannot be read or a shard cannot be written; a retry may help.
        """
        config = self._config
        views = max((len(image.variants) for shard in shards for image in shard.images), default=1)
        largest = max((3 * prod(shard.bucket) for shard in shards), default=1) * views
        threads = max(config.decode_threads, config.decode_workers)
        wanted = ((image, shard.bucket) for shard in shards for image in shard.images)
        with closing(open_decoder(config, largest)) as decoder, ThreadPoolExecutor(1, "write") as writer:
            look = partial(self._look, decoder)
            with closing(read_ahead(look, wanted, threads, ahead=-(-2 * config.batch_size // views))) as looks:
                written: Future[None] | None = None
                for shard in shards:
                    samples = yield from self._encode(shard, looks)
                    if written is not None:
                        written.result()  # one shard is written while the next is made, not more
                    written = writer.submit(self._write, shard.without(self._refusals), samples)
                if written is not None:
                    written.result()

    def _look(self, decoder: Decoder, wanted: tuple[PlannedImage, Bucket]) -> Look:
        image, bucket = wanted
        record = image.record
        if record.sha256 in self._refusals:
            return None
        settings = self._config.framing, self._config.variants
        views = [view_of(record.sha256, number, *settings) for number in image.variants]
        try:
            data = self._source.read(record.name)
            if sha256(data) != record.sha256:
                raise ImageRejected("changed", "it is not the image that was accepted; run the pipeline again")
            return list(zip(views, decoder.decode(data, bucket, views), strict=True))
        except ImageRejected as refused:
            return refused

    def _encode(self, shard: NewShard, looks: Iterator[Look]) -> Generator[CaptionRecord, None, list[Sample]]:
        """Yield each image of a shard once it is encoded or refused, and return their samples."""
        encoded: dict[tuple[str, int], EncodedView] = {}
        started: deque[tuple[list[_Seen], Moments]] = deque()
        views = self._views(shard, looks)
        # Cut with the gaps that refused images leave, so that a batch is the same however they came to be known.
        while piece := list(islice(views, self._config.batch_size)):
            if seen := [view for view in piece if view.frame is not None]:
                pixels = np.stack([view.frame.pixels for view in seen if view.frame is not None])
                started.append((seen, self._encoders.moments(pixels)))
            if len(started) > 1:  # a GPU is given the next batch before it is asked for this one
                self._finish(*started.popleft(), encoded)
            yield from (view.record for view in piece if view.last)
        for batch in started:
            self._finish(*batch, encoded)
        return self._samples(shard, encoded)

    def _views(self, shard: NewShard, looks: Iterator[Look]) -> Iterator[_Seen]:
        """Yield every view of a shard's images in order, those of refused images without a frame."""
        for image, look in zip(shard.images, looks, strict=False):
            if isinstance(look, ImageRejected):
                self._refusals.add(image.record, look)
            found = look if isinstance(look, list) else [(PLAIN, None)] * len(image.variants)
            for number, (view, framed) in zip(image.variants, found, strict=True):
                yield _Seen(image.record, number, number == image.variants[-1], view, framed)

    def _finish(self, seen: Sequence[_Seen], moments: Moments, encoded: dict[tuple[str, int], EncodedView]) -> None:
        values, finite = moments.wait()
        self._proven |= any(finite)
        for one, value, fits in zip(seen, values, finite, strict=True):
            if fits:
                assert one.frame is not None
                where = one.record.sha256, one.number
                encoded[where] = EncodedView(value, one.view, one.frame.original_size, one.frame.crop)
            elif self._config.vae_dtype != "fp32" or (not self._proven and len(finite) > 1):
                raise _unfit(one.record, "latents", "vae_dtype")
            else:
                self._refusals.add(one.record, ImageRejected("latents-overflow", f"its latents {_UNFIT}"))

    def _samples(self, shard: NewShard, encoded: Mapping[tuple[str, int], EncodedView]) -> list[Sample]:
        images = shard.without(self._refusals).images
        texts = self._encoders.text.encode([sample.caption.text for image in images for sample in image.samples])
        samples: list[Sample] = []
        for image in images:
            if all(texts[sample.caption.text].finite for sample in image.samples):
                samples += samples_of(image, shard.bucket, encoded, texts)
            elif self._config.text_dtype != "fp32":
                raise _unfit(image.record, "caption's embedding", "text_dtype")
            else:
                problem = ImageRejected("caption-overflow", f"its caption's embedding {_UNFIT}")
                self._refusals.add(image.record, problem)
        return samples

    def _write(self, shard: NewShard, samples: Sequence[Sample]) -> None:
        if samples:
            data, index = pack(samples)
            self._dataset.write(tar_key(shard.name), data)
            self._dataset.write(index_key(shard.name), index)


class _Seen(NamedTuple):
    """One view of an image; without a frame where the image is refused; the last one of it or not."""

    record: CaptionRecord
    number: int
    last: bool
    view: View
    frame: Frame | None


def _unfit(record: CaptionRecord, what: str, setting: str) -> DataError:
    return DataError(
        f"image {record.name!a} ({record.sha256[:16]}…): its {what} {_UNFIT}; set latents.{setting} to fp32, "
        "or use another model if it is"
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
