"""Which view of an image each of its variants shows: a pure function of the image's SHA-256 and the variant's number.

Variant 0 is the plain image. The others may be mirrored, cropped elsewhere, rotated and changed in colour, as
the settings say. They are encoded once, like the plain one; for training each is a sample of its own.
"""

from __future__ import annotations

import numpy as np

from components.image.framing import PLAIN, View
from components.latents.config import Framing, VariantsConfig
from components.rng import Stream, uniforms

_LEFT, _TOP, _ZOOM, _ROTATION, _BRIGHTNESS, _CONTRAST, _SATURATION = range(7)
_NUMBERS = 7


def view_of(image_sha256: str, number: int, framing: Framing, config: VariantsConfig) -> View:
    """Return how a variant of an image is cropped, rotated and coloured.

    Args:
        image_sha256: Digest of the image's bytes.
        number: The variant's number; 0 is the plain one.
        framing: How the plain one is cropped.
        config: How the others may differ from it.
    """
    seed = int(image_sha256[:16], 16)
    # Each quantity has a key of its own (in place of an epoch), so none changes if another one is not used.
    numbers: list[float] = uniforms(seed, np.arange(_NUMBERS), np.full(_NUMBERS, number), Stream.VARIANT).tolist()
    left, top = (numbers[_LEFT], numbers[_TOP]) if framing == "random-crop" else (None, None)
    if number == 0:
        return PLAIN._replace(left=left, top=top)

    def factor(largest: float, which: int) -> float:
        return 1 + largest * (2 * numbers[which] - 1)

    if config.crop < 1:
        left, top = numbers[_LEFT], numbers[_TOP]
    return View(
        left=left,
        top=top,
        zoom=config.crop + (1 - config.crop) * numbers[_ZOOM],
        rotation=config.rotation * (2 * numbers[_ROTATION] - 1),
        flipped=config.flip and number % 2 == 1,
        brightness=factor(config.brightness, _BRIGHTNESS),
        contrast=factor(config.contrast, _CONTRAST),
        saturation=factor(config.saturation, _SATURATION),
    )
