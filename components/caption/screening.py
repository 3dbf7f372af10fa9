"""What the filters measure of a picture while it is decoded anyway, and which pictures need no caption any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from components.caption.models.identity import identity
from components.digests import sha256, short
from components.image.filters import (
    PIXELS,
    FilterConfig,
    FilterFailure,
    check_scores,
    format_score,
    measure,
    parse_score,
)
from components.image.records import CaptionRecord, ImageOutcome, Rejection
from components.model.locations import read_file
from components.storage.base import Storage

if TYPE_CHECKING:
    from components.caption.models.scorers import Scorers

T = TypeVar("T")
# What pictures are measured by; what is missing here is measured of a picture and its caption.
_OF_PICTURES = ("watermark", "nsfw", "aesthetic")


@dataclass(frozen=True)
class View:
    """A picture that decodes, and what was measured of it.

    Attributes:
        width: Pixels, upright.
        height: Pixels, upright.
        small: The picture, scaled down.
        scores: What was measured, as ``components.image.filters`` writes it.
        phash: What it looks like, 16 hex digits.
    """

    width: int
    height: int
    small: Image.Image
    scores: Mapping[str, str]
    phash: str


@dataclass(frozen=True)
class Unfit:
    """A picture that needs no caption: what a filter found, and all that was measured."""

    misfit: FilterFailure
    scores: Mapping[str, str]

    def rejection(self, of: Rejection) -> Rejection:
        """Return an image's rejection with what was found."""
        return replace(
            of,
            reason=self.misfit.reason,
            detail=self.misfit.detail,
            value=self.misfit.value,
            threshold=self.misfit.threshold,
            scores=self.scores,
        )


class Screening:
    """The filters' measurements.

    Args:
        config: What is measured, and the thresholds.
        workdir: Where ``workdir:`` models lie.
    """

    def __init__(self, config: FilterConfig, workdir: Storage) -> None:
        self._config = config
        self._workdir = workdir

    @cached_property
    def versions(self) -> dict[str, str]:
        """What measures each score that is wanted: it changes when a model, its label or its head does."""
        config, made = self._config, {"spread": PIXELS, "sharpness": PIXELS}
        for name, classifier in (("watermark", config.watermark), ("nsfw", config.nsfw)):
            if classifier.model is not None:
                made[name] = short([identity(classifier.model, self._workdir), classifier.label], 8)
        if config.aesthetic.model is not None and config.aesthetic.head is not None:
            head = sha256(read_file(config.aesthetic.head, self._workdir))
            made["aesthetic"] = short([identity(config.aesthetic.model, self._workdir), head], 8)
        if config.similarity.model is not None:
            made["similarity"] = short(identity(config.similarity.model, self._workdir), 8)
        return made

    def view(self, picture: Image.Image) -> View:
        """Measure a picture's pixels."""
        found = measure(picture)
        return View(picture.width, picture.height, found.small, found.scores, found.phash)

    def with_models(self, views: Sequence[View]) -> list[View]:
        """Return the views with what the models say of the pictures."""
        if not any(name in self.versions for name in _OF_PICTURES) or not views:
            return list(views)
        found = self._scorers.of_pictures([view.small for view in views])
        return [
            replace(view, scores={**view.scores, **self._written(scores)})
            for view, scores in zip(views, found, strict=True)
        ]

    def with_captions(self, records: Sequence[CaptionRecord], views: Sequence[View]) -> list[CaptionRecord]:
        """Return the records with what was measured of their pictures, and of these together with the main caption."""
        pairs: list[dict[str, float]] = [{} for _ in records]
        if "similarity" in self.versions and records:
            captions = [record.captions[0].text for record in records]
            pairs = self._scorers.of_pairs([view.small for view in views], captions)
        return [
            replace(
                record,
                verdicts={**record.verdicts, **view.scores, **self._written(scores)},
                phash=view.phash,
            )
            for record, view, scores in zip(records, views, pairs, strict=True)
        ]

    def screened(self, view: View) -> View | Unfit:
        """Hold a picture against the thresholds."""
        misfit = self._misfit(view.scores)
        return view if misfit is None else Unfit(misfit, view.scores)

    def wanting(self, scores: Mapping[str, str]) -> set[str]:
        """Return which scores are wanted and are not there, or not by what is asked for now."""
        return {name for name, version in self.versions.items() if _version(scores.get(name, "")) != version}

    def renewed(self, known: ImageOutcome) -> ImageOutcome | None:
        """Return an earlier outcome as the thresholds of now have it, or None where it needs another look.

        A record stands whatever its scores: the clean step leaves out what does not fit, once the caption is there.
        """
        if isinstance(known, CaptionRecord) or known.threshold is None:
            return known
        misfit = self._misfit(known.scores)
        return None if misfit is None else Unfit(misfit, known.scores).rejection(known)

    def in_batches(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yield items in the batches that the models look at; one by one where there are no models."""
        size = self._config.batch_size if len(self.versions) > len(("spread", "sharpness")) else 1
        batch: list[T] = []
        for item in items:
            batch.append(item)
            if len(batch) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _misfit(self, scores: Mapping[str, str]) -> FilterFailure | None:
        """Hold what was measured against the thresholds, as far as it was measured by what is asked for now."""
        return check_scores({name: scores[name] for name in self.versions.keys() - self.wanting(scores)}, self._config)

    def _written(self, scores: Mapping[str, float]) -> dict[str, str]:
        return {name: format_score(value, self.versions[name]) for name, value in scores.items()}

    @cached_property
    def _scorers(self) -> Scorers:
        from components.caption.models.scorers import Scorers  # here, since transformers takes long to import

        return Scorers(self._config, self._workdir)


def _version(score: str) -> str:
    try:
        return parse_score(score)[1]
    except ValueError:
        return ""
