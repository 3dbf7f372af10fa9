"""Where each image goes: its bucket, what is cropped away of it, and how far it is enlarged. Pure."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from components.image.buckets import Bucket, Buckets
from components.image.framing import Box, crop_box

# An image that loses less than this is none of the worst.
_LEAST_LOSS = 0.05


class Fit(NamedTuple):
    """How one image fits its bucket.

    Attributes:
        width: Of the whole image, in pixels.
        height: The same.
        bucket: The bucket's height and width in pixels.
        crop: Left, top, width and height of the largest crop of the bucket's shape, in the middle of the image.
    """

    width: int
    height: int
    bucket: Bucket
    crop: Box

    @property
    def cropped_away(self) -> float:
        """Share of the image's pixels that are not in the crop, 0..1."""
        return 1 - self.crop[2] * self.crop[3] / (self.width * self.height)

    @property
    def enlargement(self) -> float:
        """By what factor the crop's sides are scaled; below 1 it is made smaller."""
        height, width = self.bucket
        return max(width / self.crop[2], height / self.crop[3])

    @property
    def loss(self) -> float:
        """How bad it is, 0..1: what is cropped away, and what enlarging has to invent of the rest."""
        return 1 - (1 - self.cropped_away) / max(1.0, self.enlargement) ** 2


def fit(width: int, height: int, buckets: Buckets) -> Fit:
    """Return how an image of a size fits the bucket that suits it best."""
    bucket = buckets.choose(width, height)
    return Fit(width, height, bucket, crop_box(width, height, *bucket))


class BadFit(NamedTuple):
    """One of the images that fit worst; sorts before those that fit better."""

    better: float  # minus the loss
    sha256: str
    name: str
    fit: Fit


@dataclass
class BucketCount:
    """What became of the images of one bucket."""

    images: int = 0
    cropped_away: float = 0.0  # sum of their shares
    enlarged: int = 0
    largest: float = 0.0  # enlargement


@dataclass
class FitTally:
    """Counts where images go, one after the other.

    Attributes:
        buckets: The buckets.
        limit: How many of the worst to keep.
        counts: What became of the images of each bucket.
        worst: The images that lose most, the worst first.
    """

    buckets: Buckets
    limit: int = 10
    counts: dict[Bucket, BucketCount] = field(default_factory=dict)
    worst: list[BadFit] = field(default_factory=list)

    def add(self, width: int, height: int, name: str, sha256: str) -> None:
        """Count an image."""
        one = fit(width, height, self.buckets)
        count = self.counts.setdefault(one.bucket, BucketCount())
        count.images += 1
        count.cropped_away += one.cropped_away
        count.enlarged += one.enlargement > 1
        count.largest = max(count.largest, one.enlargement)
        if one.loss >= _LEAST_LOSS:
            insort(self.worst, BadFit(-one.loss, sha256, name, one))
            del self.worst[self.limit :]

    def numbers(self) -> dict[str, Any]:
        """Return what was counted as a JSON object: the fullest bucket first, shares as means over its images."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1].images, item[0]))
        return {
            "buckets": [
                {
                    "width": bucket[1],
                    "height": bucket[0],
                    "images": count.images,
                    "cropped_away": count.cropped_away / count.images,
                    "enlarged": count.enlarged / count.images,
                    "largest_enlargement": count.largest,
                }
                for bucket, count in ordered
            ],
            "worst_fits": [
                {
                    "name": bad.name,
                    "width": bad.fit.width,
                    "height": bad.fit.height,
                    "bucket": [bad.fit.bucket[1], bad.fit.bucket[0]],
                    "crop": list(bad.fit.crop),
                    "cropped_away": bad.fit.cropped_away,
                    "enlargement": bad.fit.enlargement,
                }
                for bad in self.worst
            ],
        }
