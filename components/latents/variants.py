"""Which view of an image each of its variants is: a pure function of the image's SHA-256 and the variant's number.

Variant 0 is the plain picture. The others may be mirrored, cut elsewhere and closer, turned and changed in colour, as
the settings say. They are encoded once, like the plain one; training then meets them as samples of their own.
"""

from __future__ import annotations

import numpy as np

from components.image.framing import PLAIN, View
from components.latents.config import Framing, VariantsConfig
from components.rng import Stream, uniforms

_LEFT, _TOP, _ZOOM, _ROTATION, _BRIGHTNESS, _CONTRAST, _SATURATION = range(7)
_NUMBERS = 7


def view_of(image_sha256: str, number: int, framing: Framing, config: VariantsConfig) -> View:
    """Return how a variant of an image is cut out of it, turned and coloured.

    Args:
        image_sha256: Digest of the image's bytes.
        number: The variant's number; 0 is the plain one.
        framing: Where the plain one is cut out.
        config: How the others may differ from it.
    """
    seed = int(image_sha256[:16], 16)
    # What is drawn takes the epoch's place, so that none of the numbers moves when another one is not needed.
    drawn: list[float] = uniforms(seed, np.arange(_NUMBERS), np.full(_NUMBERS, number), Stream.VARIANT).tolist()
    left, top = (drawn[_LEFT], drawn[_TOP]) if framing == "random-crop" else (None, None)
    if number == 0:
        return PLAIN._replace(left=left, top=top)

    def factor(largest: float, which: int) -> float:
        return 1 + largest * (2 * drawn[which] - 1)

    if config.crop < 1:
        left, top = drawn[_LEFT], drawn[_TOP]
    return View(
        left=left,
        top=top,
        zoom=config.crop + (1 - config.crop) * drawn[_ZOOM],
        rotation=config.rotation * (2 * drawn[_ROTATION] - 1),
        flipped=config.flip and number % 2 == 1,
        brightness=factor(config.brightness, _BRIGHTNESS),
        contrast=factor(config.contrast, _CONTRAST),
        saturation=factor(config.saturation, _SATURATION),
    )
