"""Aspect-ratio buckets: the few shapes that images are cut to, and which of them suits an image best.

After NovelAI's "aspect ratio bucketing" (2022) and SDXL (Podell et al., arXiv:2307.01952, §2.3): all buckets have about
the same area and sides that are multiples of a step. An image goes into the bucket that is nearest in the logarithm of
the aspect ratio, so that least of it is cut off; the choice is made from its width and height in integer arithmetic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

# Height and width in pixels.
Bucket = tuple[int, int]


class Buckets:
    """The buckets of an encoding.

    Args:
        shapes: Heights and widths, no two of the same aspect ratio.

    Attributes:
        shapes: The same, from the tallest to the widest.
    """

    def __init__(self, shapes: Sequence[Bucket]) -> None:
        self.shapes = sorted(shapes, key=_aspect)
        # Squares of the aspect ratios at which images change from one bucket to the next: geometric means.
        self._borders = [_aspect(narrow) * _aspect(wide) for narrow, wide in pairwise(self.shapes)]

    def choose(self, width: int, height: int) -> Bucket:
        """Return the bucket whose aspect ratio is nearest to an image's; if two are equally near, the taller one."""
        return self.shapes[bisect_left(self._borders, Fraction(width * width, height * height))]


def square_bucket(side: int) -> Buckets:
    """Return the only bucket of images that are all cut to squares."""
    return Buckets([(side, side)])


def aspect_buckets(side: int, step: int, max_aspect: float) -> Buckets:
    """Return buckets of several aspect ratios.

    Args:
        side: Of the square one; the others have about its area.
        step: Sides of the others are multiples of this.
        max_aspect: Largest ratio of a longer side to the shorter one.
    """
    shapes = {(side, side)}
    for long in range(side + step, side * side // step + 1, step):
        short = side * side // long // step * step
        if long > max_aspect * short:
            break
        shapes |= {(short, long), (long, short)}
    return Buckets(list(shapes))


def _aspect(bucket: Bucket) -> Fraction:
    height, width = bucket
    return Fraction(width, height)
