"""How often the images of several sources stand in an epoch, as a dataset's version says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.dataset.format import SampleId
from components.dataset.versions import is_held_out
from components.image.union import UnionMember, rates_of, shares_of

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class RepeatsOfImages:
    """How often each image stands in an epoch.

    Args:
        members: The sources; none if there is but one.
        owners: The number of each image's source, by the image's digest.
        live: All samples of the dataset.
        held_out: Share of the images that are held out from training.

    Attributes:
        of_dataset: The different repeats, ascending; empty if each image stands once.
    """

    def __init__(
        self, members: Sequence[UnionMember], owners: Mapping[str, int], live: Iterable[SampleId], held_out: float
    ) -> None:
        self._members = members
        self._owners = owners
        samples = (sample for sample in live if not is_held_out(sample.image, held_out)) if members else ()
        trained = Counter(owners[sample.image] for sample in samples)
        self._samples = [trained[number] for number in range(len(members))]
        self._rates = rates_of(members, self._samples)
        different = sorted({rate for rate, count in zip(self._rates, self._samples, strict=True) if count})
        different = [] if different == [1] else different
        self.of_dataset = tuple(map(str, different))
        self._digits = [_DIGITS[different.index(rate)] if rate in different else _DIGITS[0] for rate in self._rates]

    def of_shard(self, images: Sequence[str], train: Sequence[int]) -> str:
        """Return `components.dataset.versions.Shard.repeats` of a shard.

        Args:
            images: The digest of each sample's image.
            train: The numbers of the samples to train on.
        """
        if not self.of_dataset:
            return ""
        digits = [_DIGITS[0]] * len(images)
        for number in train:
            digits[number] = self._digits[self._owners[images[number]]]
        different = {digits[number] for number in train}
        return "".join(digits) if len(different) > 1 else "".join(different) or _DIGITS[0]

    def result(self) -> dict[str, Any]:
        """Return what the index step says of the sources; nothing if there is but one."""
        if not self._members:
            return {}
        images = Counter(self._owners.values())
        rows = zip(self._members, self._rates, self._samples, shares_of(self._members, self._samples), strict=True)
        return {
            "sources": [
                {
                    "label": member.label,
                    "source": member.source,
                    "images": images[number],
                    "samples": samples,
                    "repeats": round(float(rate), 4),
                    "share": round(float(share), 6),
                }
                for number, (member, rate, samples, share) in enumerate(rows)
            ]
        }
