"""What the data report counts: images in, numbers out, in memory that does not grow with the images. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from math import log2
from typing import Any

from components.image.authors import author
from components.image.buckets import Buckets
from components.image.fit import FitTally
from components.image.records import CaptionRecord, Rejection
from components.image.union import split_name

# Shorter sides of images, in pixels, where a new column begins.
SIDES = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
# Words of a caption, where a new column begins; CLIP's text encoders read about 50 words, 77 tokens.
LENGTHS = (1, 3, 6, 11, 16, 21, 31, 41, 51, 76)
# Columns of the aspect ratio: width over height is 2^(k/4), from 1:4 to 4:1.
WIDEST = 8

# Different words, licences and authors that are counted at the same time; beyond that, rare ones are forgotten.
DIFFERENT = 100_000
LONGEST_WORD = 40
# Words that say nothing about the content of an image.
# The verdict that says why a caption of an image could not be used, if another source had one.
CAPTION = "caption"
QUIET = frozenset((
    *("a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "her", "his", "in", "into", "is", "it"),
    *("its", "of", "on", "or", "that", "the", "their", "there", "they", "this", "to", "with"),
))  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:[’'-][^\W_]+)*")


@dataclass
class Shown:
    """Images chosen to be shown: those with the smallest keys, whatever order they come in.

    Attributes:
        limit: How many, at most.
        chosen: Key, name and digest of the file, caption or reason; sorted.
    """

    limit: int
    chosen: list[tuple[str, str, str, str]] = field(default_factory=list)

    def offer(self, key: str, name: str, sha256: str, text: str) -> None:
        """Add an image if its key is among the smallest."""
        if len(self.chosen) < self.limit or (self.chosen and key < self.chosen[-1][0]):
            insort(self.chosen, (key, name, sha256, text))
            del self.chosen[self.limit :]


@dataclass
class Reason:
    """How many images were rejected for one reason, and which of them to show."""

    images: int = 0
    threshold: float | None = None
    shown: Shown = field(default_factory=lambda: Shown(0))


class Tally:
    """Counts images one after the other.

    Args:
        kept_images: Kept images to choose for the report, at most.
        rejected_images: Images to choose for each reason, at most.
        buckets: The shapes that images are cut to; None if they are not known.
        tokens: How many tokens of a caption a text encoder will read; None if that is not known.
        labels: What the names of each source's images begin with, if there are several sources.

    Attributes:
        kept_of: Images kept of each source, by its label.
        rejected_of: Images rejected of each source.
    """

    def __init__(
        self,
        kept_images: int,
        rejected_images: int,
        buckets: Buckets | None = None,
        tokens: int | None = None,
        labels: Collection[str] = (),
    ) -> None:
        self.kept = 0
        self.kept_of = dict.fromkeys(labels, 0)
        self.rejected_of = dict.fromkeys(labels, 0)
        self.fits = None if buckets is None else FitTally(buckets)
        self.shown = Shown(kept_images)
        self.reasons: dict[tuple[str, str], Reason] = {}
        self._rejected_images = rejected_images
        self._sides = [0] * (len(SIDES) + 1)
        self._aspects = [0] * (2 * WIDEST + 1)
        self._lengths = [0] * (len(LENGTHS) + 1)
        self._captions = 0
        self._tokens = tokens
        self._longer = 0
        self._words: Counter[str] = Counter()
        self._authors: Counter[str] = Counter()
        self._licenses: Counter[str] = Counter()
        self._transparent = 0
        self._unused_captions = 0
        self._unused_caption = ("", "")

    @property
    def rejected(self) -> int:
        """Images rejected, by any step."""
        return sum(reason.images for reason in self.reasons.values())

    def keep(self, record: CaptionRecord) -> None:
        """Count an image that is kept."""
        self.kept += 1
        _count_source(self.kept_of, record.name)
        self._sides[bisect_right(SIDES, min(record.width, record.height))] += 1
        self._aspects[aspect_column(record.width, record.height)] += 1
        self._licenses[record.license or ""] += 1
        self._transparent += not record.verdicts.get("transparent", "0 ").startswith("0 ")
        if CAPTION in record.verdicts:  # this image's own caption could not be used
            self._unused_captions += 1
            first = (record.name, record.verdicts[CAPTION])
            self._unused_caption = min(self._unused_caption, first) if self._unused_caption[0] else first
        for caption in record.captions:
            words = words_of(caption.text)
            self._captions += 1
            # Tokenizers never join what spaces divide, so a caption has at least as many tokens.
            self._longer += self._tokens is not None and len(caption.text.split()) > self._tokens
            self._lengths[bisect_right(LENGTHS, len(words))] += 1
            self._words.update(word for word in words if word not in QUIET and not word.isnumeric())
            self._authors[author(caption.by)] += 1
        for counter in (self._words, self._authors, self._licenses):
            forget_rare(counter)
        if self.fits is not None:
            self.fits.add(record.width, record.height, record.name, record.sha256)
        self.shown.offer(record.sha256, record.name, record.sha256, record.captions[0].text)

    def reject(self, rejection: Rejection) -> None:
        """Count an image that is rejected."""
        key = (rejection.step, rejection.reason)
        if key not in self.reasons:
            self.reasons[key] = Reason(shown=Shown(self._rejected_images))
        reason = self.reasons[key]
        reason.images += 1
        _count_source(self.rejected_of, rejection.name)
        if rejection.threshold is not None:
            reason.threshold = rejection.threshold
        # Files that could not be read have no digest, but they have names.
        sha256 = rejection.sha256 or ""
        reason.shown.offer(sha256 or rejection.name, rejection.name, sha256, rejection.detail)

    def numbers(self, words: int) -> dict[str, Any]:
        """Return what was counted as a JSON object; ``words`` of the most frequent words are in it."""
        rejected = sorted(self.reasons.items(), key=lambda item: (-item[1].images, item[0]))
        return {
            "images": self.kept + self.rejected,
            "kept": self.kept,
            "rejected": [
                {"step": step, "reason": name, "images": reason.images, "threshold": reason.threshold}
                for (step, name), reason in rejected
            ],
            "transparent": self._transparent,
            "unused_captions": {"images": self._unused_captions, "example": self._unused_caption[1]},
            "shorter_sides": [[name, count] for name, count in zip(spans(SIDES), self._sides, strict=True)],
            "aspects": list(self._aspects),
            "captions": self._captions,
            "caption_words": [[name, count] for name, count in zip(spans(LENGTHS), self._lengths, strict=True)],
            "surely_cut": None if self._tokens is None else {"captions": self._longer, "tokens": self._tokens},
            "words": _most(self._words, words),
            "authors": _most(self._authors, words),
            "licenses": _most(self._licenses, words),
            **(self.fits.numbers() if self.fits is not None else {"buckets": [], "worst_fits": []}),
        }


def words_of(text: str) -> list[str]:
    """Return the words of a caption, in lower case, the longest cut short."""
    return [word[:LONGEST_WORD] for word in _WORD.findall(text.lower())]


def aspect_column(width: int, height: int) -> int:
    """Return the column of an aspect ratio: 0 for 1:4 and taller images, the middle one for squares."""
    return min(max(round(4 * log2(width / height)), -WIDEST), WIDEST) + WIDEST


def spans(edges: tuple[int, ...]) -> list[str]:
    """Return the labels of the columns between some edges, such as ``3–5``."""
    inner = [f"{low}–{high - 1}" if high - 1 > low else f"{low}" for low, high in pairwise(edges)]
    return [f"{edges[0] - 1}" if edges[0] == 1 else f"< {edges[0]}", *inner, f"{edges[-1]}+"]


def forget_rare(counter: Counter[str]) -> None:
    """Drop the rarer half of the counts once there are too many; frequent ones lose nothing."""
    if len(counter) > DIFFERENT:
        for name, _ in counter.most_common()[DIFFERENT // 2 :]:
            del counter[name]


def _most(counter: Counter[str], limit: int) -> list[list[Any]]:
    return [[name, count] for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:limit]]


def _count_source(counts: dict[str, int], name: str) -> None:
    """Count an image of a union for its source."""
    label = split_name(name)[0]
    if label in counts:
        counts[label] += 1
