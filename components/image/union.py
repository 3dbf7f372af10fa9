"""Several sources as one: what their images are called, and what each source calls its own.

In the union a file's name begins with the label of its source, ``photos/a.jpg``. All that a name says of an image, such
as the folder that it lies in, is asked of the name in its own source, so that its captions are what that source alone
would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.image.records import ImageRecord


@dataclass(frozen=True)
class UnionMember:
    """One source of a union.

    Attributes:
        label: What the names of its files begin with, before a slash.
        source_id: The name of its own records.
        source: Its URL, absolute.
        images: How many images of the union are its own; of equal images in several sources one has it.
        rejected: How many of its images were rejected, those that another source has included.
        repeats: How often each of its images stands in an epoch; None if the settings do not say.
        weight: Its share of an epoch, relative to the others' weights; None if the settings do not say.
    """

    label: str
    source_id: str
    source: str
    images: int
    rejected: int
    repeats: float | None = None
    weight: float | None = None


def labels_of(urls: Sequence[str]) -> tuple[str, ...]:
    """Return a label for each source: the last part of its URL, with a number if an earlier one has it."""
    labels: list[str] = []
    for url in urls:
        last = url.rstrip("/").rpartition("/")[2] or "source"
        names = (last if number == 1 else f"{last}-{number}" for number in count(1))
        labels.append(next(name for name in names if name not in labels))
    return tuple(labels)


def rates_of(members: Sequence[UnionMember], samples: Sequence[int]) -> list[Fraction]:
    """Return how often a sample of each source stands in an epoch.

    Weights become the repeats that give each source its share, with one source's samples standing once each and no
    other's less than that.

    Args:
        members: The sources.
        samples: How many samples each of them has.
    """
    if all(member.weight is None for member in members):
        return [Fraction(repr(1 if member.repeats is None else member.repeats)) for member in members]
    weights = [Fraction(repr(member.weight)) for member in members]
    largest = max((number / weight for number, weight in zip(samples, weights, strict=True)), default=Fraction(0))
    return [
        largest * weight / number if number else Fraction(1) for number, weight in zip(samples, weights, strict=True)
    ]


def shares_of(members: Sequence[UnionMember], samples: Sequence[int]) -> list[Fraction]:
    """Return the share of an epoch that each source has; the arguments are those of `rates_of`."""
    entries = [rate * number for rate, number in zip(rates_of(members, samples), samples, strict=True)]
    return [one / max(sum(entries), 1) for one in entries]


def mean_repeats(members: Sequence[UnionMember]) -> float:
    """Return how often an image stands in an epoch on average; 1 if there are no several sources."""
    images = [member.images for member in members]
    entries = sum(rate * number for rate, number in zip(rates_of(members, images), images, strict=True))
    return float(entries / sum(images)) if sum(images) else 1.0


def in_union(image: ImageRecord, label: str) -> ImageRecord:
    """Return an image of a source as the union has it."""
    return _renamed(image, lambda name: f"{label}/{name}")


def split_name(name: str) -> tuple[str, str]:
    """Return the label of a name in a union, and the name in its own source."""
    label, _, own = name.partition("/")
    return label, own


def in_own_source(image: ImageRecord) -> ImageRecord:
    """Return an image of a union as its own source has it."""
    return _renamed(image, lambda name: split_name(name)[1])


def _renamed(image: ImageRecord, rename: Callable[[str], str]) -> ImageRecord:
    caption, mask = (file and replace(file, name=rename(file.name)) for file in (image.caption, image.mask))
    return replace(image, name=rename(image.name), caption=caption, mask=mask)
