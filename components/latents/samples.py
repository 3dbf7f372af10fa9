"""The samples that an encoded image gives: arrays, and the JSON that describes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dataset.format import Added, Sample
from components.image.buckets import Bucket
from components.image.framing import Box, View, time_ids
from components.image.records import CaptionRecord
from components.latents.plan import PlannedImage, PlannedSample
from components.latents.text_encoder import TextEmbedding


class EncodedView(NamedTuple):
    """One variant of an image, encoded.

    Attributes:
        moments: fp16 ``[2C, h, w]``.
        view: How the variant was cut out of the image and changed.
        original_size: Width and height of the whole image in pixels.
        crop: The part of it that the variant shows, in its pixels.
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
        image: The image and its planned samples.
        bucket: Height and width that it was cut to.
        views: Encoded variants, by the image's SHA-256 and the variant's number.
        texts: Encoded captions, by their text.
    """
    for planned in image.samples:
        variant = planned.id.variant
        encoded, text = views[image.record.sha256, variant], texts[planned.caption.text]
        meta = describe(image.record, planned, encoded, bucket)
        ids = np.array(meta["time_ids"], dtype=np.int32)
        added = Added(text.pooled, ids) if text.pooled is not None else None
        yield Sample(planned.key, encoded.moments, text.states, meta, variant, added)


def describe(record: CaptionRecord, planned: PlannedSample, encoded: EncodedView, bucket: Bucket) -> dict[str, Any]:
    """Return the JSON of a sample."""
    view = encoded.view
    return {
        "sha256": record.sha256,
        "caption": planned.caption.text,
        "caption_by": planned.caption.by,
        "caption_digest": planned.id.caption,
        "license": record.license,
        "source": record.source,
        "variant": planned.id.variant,
        "original_size": list(encoded.original_size),
        "crop": list(encoded.crop),
        "bucket": list(bucket),
        "flipped": view.flipped,
        "rotation": view.rotation,
        "brightness": view.brightness,
        "contrast": view.contrast,
        "saturation": view.saturation,
        "time_ids": list(time_ids(encoded.original_size, encoded.crop, bucket, view.flipped)),
    }
