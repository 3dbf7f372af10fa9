"""Prompts taken from a dataset's own captions, for runs whose settings name none (pure).

The index step notes a few captions with each version of a dataset: the commonest, and some of held-out images, which
no model has been trained on. From these, `prompts_of` chooses by the dataset's digest and a seed, so all who ask for
the prompts of the same version get the same ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from components.digests import digest
from components.errors import DataError

if TYPE_CHECKING:
    from components.dataset.versions import Dataset

# How many prompts are chosen, and captions of each kind noted to choose from.
PROMPTS = 8
NOTED = 32
# Characters beyond which a caption is no prompt; text encoders read about 300 of them.
LONGEST = 500
# Different captions that are counted at the same time; beyond that, the rarer half is forgotten.
_DIFFERENT = 100_000


@dataclass(frozen=True)
class NotedCaptions:
    """Captions to take prompts from.

    Attributes:
        common: Those that most images have, the commonest first; none that only one image has, unless nothing is held
            out.
        held_out: Those of some held-out images, in the order of their digests.
    """

    common: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


@dataclass
class CaptionNotes:
    """Collects captions while a dataset is built."""

    _times: Counter[str] = field(default_factory=Counter)
    _held_out: set[str] = field(default_factory=set)

    def add(self, captions: Iterable[str], is_held_out: bool) -> None:
        """Note the captions of one image; blank ones, and those too long for a prompt, are left aside."""
        usable = {caption for caption in captions if caption.strip() and len(caption) <= LONGEST}
        self._times.update(usable)
        if len(self._times) > _DIFFERENT:
            self._times = Counter(dict(self._times.most_common(_DIFFERENT // 2)))
        if is_held_out:
            self._held_out = set(_first([*self._held_out, *usable], NOTED))

    def result(self) -> NotedCaptions:
        """Return what is worth keeping of them."""
        least = 2 if self._held_out else 1
        times = {caption: times for caption, times in self._times.items() if times >= least}
        common = sorted(times, key=lambda caption: (-times[caption], digest(caption)))
        return NotedCaptions(tuple(common[:NOTED]), tuple(_first(self._held_out, NOTED)))


def prompts_of(dataset: Dataset, seed: int, setting: str) -> tuple[str, ...]:
    """Return up to `PROMPTS` different captions: half of them the commonest, then held-out ones as good as by lot.

    Args:
        dataset: The version that is trained on.
        seed: Another seed gives other held-out captions.
        setting: The setting that could have named prompts, for the error.

    Raises:
        DataError: If the dataset has no captions noted.
    """
    noted = dataset.noted_captions
    drawn = sorted(noted.held_out, key=lambda caption: digest([dataset.digest, seed, caption]))
    chosen = tuple(islice(dict.fromkeys([*noted.common[: PROMPTS // 2], *drawn, *noted.common]), PROMPTS))
    if not chosen:
        raise DataError(
            f"{setting} names no prompts, and none can be taken from the dataset {dataset.digest[:12]}…: no caption "
            f"has at most {LONGEST} characters, or an earlier version of Darkroom indexed it. Set {setting}, or run "
            "the index step again"
        )
    return chosen


def _first(captions: Iterable[str], limit: int) -> Sequence[str]:
    """Return the captions with the smallest digests."""
    return sorted(set(captions), key=digest)[:limit]
