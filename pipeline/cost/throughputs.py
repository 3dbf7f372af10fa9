"""How fast training is known to run: measured by others and published with all that it depends on. Pure."""

from __future__ import annotations

from typing import NamedTuple

from components.model.unet_shape import SD2, UnetShape


class Published(NamedTuple):
    """One measurement: latents and text embeddings were there before, as Darkroom has them.

    Attributes:
        shape: Of the UNet.
        resolution: Side of the square images in pixels.
        gpu: A word of the GPU's name.
        gpus: How many there were.
        images_per_second: Over all of them.
        source: Where it was published.
    """

    shape: UnetShape
    resolution: int
    gpu: str
    gpus: int
    images_per_second: float
    source: str


_MOSAIC = "MosaicML's diffusion repository (github.com/mosaicml/diffusion, README)"
# Stable Diffusion 2 base from scratch, fp16, batch 2048. The 256-pixel row of 128 GPUs is theirs: it scales less well.
PUBLISHED = tuple(
    Published(SD2, resolution, "A100", gpus, speed, _MOSAIC)
    for gpus, small, large in (
        (8, 1100, 290),
        (16, 2180, 585),
        (32, 4080, 1195),
        (64, 8530, 2340),
        (128, 11600, 4590),
    )
    for resolution, speed in ((256, small), (512, large))
)


def published(shape: UnetShape, resolution: int, gpu: str, gpus: int) -> Published | None:
    """Return the measurement that comes nearest in its number of GPUs, or None where no other thing is the same."""
    words = gpu.upper().replace("-", " ").split()
    same = [one for one in PUBLISHED if (one.shape, one.resolution) == (shape, resolution) and one.gpu in words]
    return min(same, key=lambda one: abs(one.gpus - gpus), default=None)


def speed_like(one: Published, gpus: int) -> float:
    """Return images per second on some GPUs, each as fast as in a measurement."""
    return one.images_per_second / one.gpus * gpus
