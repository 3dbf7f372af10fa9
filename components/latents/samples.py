"""The samples that an encoded image gives: arrays, and the JSON that says what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dataset.format import Added, Sample
from components.image.framing import Box, View, time_ids
from components.image.records import CaptionRecord
from components.latents.buckets import Bucket
from components.latents.plan import PlannedImage, PlannedSample
from components.latents.text import TextEmbedding


class EncodedView(NamedTuple):
    """One variant of an image, encoded.

    Attributes:
        moments: fp16 ``[2C, h, w]``.
        view: How the picture was looked at.
        original_size: Width and height of the whole picture in pixels.
        crop: The part of it that was taken, in its pixels.
    """

    moments: NDArray[np.float16]
    view: View
    original_size: tuple[int, int]
    crop: Box


def samples_of(
    image: PlannedImage,
    bucket: Bucket,
    views: Mapping[tuple[str, int], EncodedView],
    texts: Mapping[str, TextEmbedding],
) -> Iterator[Sample]:
    """Yield the samples of an image.

    Args:
        image: What is to be made of it.
        bucket: Height and width that it was cut to.
        views: Encoded variants by image and number.
        texts: Encoded captions.
    """
    for planned in image.samples:
        variant = planned.id.variant
        seen, said = views[image.record.sha256, variant], texts[planned.caption.text]
        meta = describe(image.record, planned, seen, bucket)
        ids = np.array(meta["time_ids"], dtype=np.int32)
        added = Added(said.pooled, ids) if said.pooled is not None else None
        yield Sample(planned.key, seen.moments, said.states, meta, variant, added)


def describe(record: CaptionRecord, planned: PlannedSample, seen: EncodedView, bucket: Bucket) -> dict[str, Any]:
    """Return the JSON of a sample."""
    view = seen.view
    return {
        "sha256": record.sha256,
        "caption": planned.caption.text,
        "caption_by": planned.caption.by,
        "caption_digest": planned.id.caption,
        "license": record.license,
        "source": record.source,
        "variant": planned.id.variant,
        "original_size": list(seen.original_size),
        "crop": list(seen.crop),
        "bucket": list(bucket),
        "flipped": view.flipped,
        "rotation": view.rotation,
        "brightness": view.brightness,
        "contrast": view.contrast,
        "saturation": view.saturation,
        "time_ids": list(time_ids(seen.original_size, seen.crop, bucket, view.flipped)),
    }
