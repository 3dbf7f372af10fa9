"""The buckets that the settings of the encoding ask for."""

from __future__ import annotations

from components.image.buckets import Buckets, aspect_buckets, square_bucket
from components.latents.config import LatentsConfig


def make_buckets(config: LatentsConfig) -> Buckets:
    """Return the buckets that images are put into."""
    if config.buckets == "square":
        return square_bucket(config.resolution)
    return aspect_buckets(config.resolution, config.bucket_step, config.max_aspect)
