"""What the filters measure of an image once it is decoded, and which images need no caption because of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from components.caption.models.identity import identity
from components.digests import sha256, short
from components.image.filters import (
    PIXEL_SCORES,
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
# Scores of images alone; the other one, similarity, is of an image and its caption.
_OF_IMAGES = ("watermark", "nsfw", "aesthetic")


@dataclass(frozen=True)
class MeasuredImage:
    """A decoded image, scaled down, and what was measured of it.

    Attributes:
        width: Pixels, upright.
        height: Pixels, upright.
        small: The image, scaled down.
        scores: What was measured, as ``components.image.filters`` writes it.
        phash: Its perceptual hash, 16 hex digits.
    """

    width: int
    height: int
    small: Image.Image
    scores: Mapping[str, str]
    phash: str


@dataclass(frozen=True)
class UnfitImage:
    """An image that needs no caption, with the filter's reason and all that was measured."""

    misfit: FilterFailure
    scores: Mapping[str, str]

    def rejection(self, rejection: Rejection) -> Rejection:
        """Return an image's rejection with the reason and the scores."""
        return replace(
            rejection,
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
        workdir: The storage of ``workdir:`` models.
    """

    def __init__(self, config: FilterConfig, workdir: Storage) -> None:
        self._config = config
        self._workdir = workdir

    @cached_property
    def versions(self) -> dict[str, str]:
        """The version of each score that the filters need: it changes when a model, its label or its head does."""
        config, versions = self._config, dict.fromkeys(PIXEL_SCORES, PIXELS)
        for name, classifier in (("watermark", config.watermark), ("nsfw", config.nsfw)):
            if classifier.model is not None:
                versions[name] = short([identity(classifier.model, self._workdir), classifier.label], 8)
        if config.aesthetic.model is not None and config.aesthetic.head is not None:
            head = sha256(read_file(config.aesthetic.head, self._workdir))
            versions["aesthetic"] = short([identity(config.aesthetic.model, self._workdir), head], 8)
        if config.similarity.model is not None:
            versions["similarity"] = short(identity(config.similarity.model, self._workdir), 8)
        return versions

    def measure(self, image: Image.Image) -> MeasuredImage:
        """Measure an image's pixels."""
        measures = measure(image)
        return MeasuredImage(image.width, image.height, measures.small, measures.scores, measures.phash)

    def with_models(self, images: Sequence[MeasuredImage]) -> list[MeasuredImage]:
        """Return the images with the scores that the filters' models give them."""
        if not any(name in self.versions for name in _OF_IMAGES) or not images:
            return list(images)
        model_scores = self._scorers.of_images([image.small for image in images])
        return [
            replace(image, scores={**image.scores, **self._formatted(scores)})
            for image, scores in zip(images, model_scores, strict=True)
        ]

    def with_captions(self, records: Sequence[CaptionRecord], images: Sequence[MeasuredImage]) -> list[CaptionRecord]:
        """Return the records with the scores of their images, and of each image with its main caption."""
        pairs: list[dict[str, float]] = [{} for _ in records]
        if "similarity" in self.versions and records:
            captions = [record.captions[0].text for record in records]
            pairs = self._scorers.of_pairs([image.small for image in images], captions)
        return [
            replace(
                record,
                verdicts={**record.verdicts, **image.scores, **self._formatted(scores)},
                phash=image.phash,
            )
            for record, image, scores in zip(records, images, pairs, strict=True)
        ]

    def screen(self, image: MeasuredImage) -> MeasuredImage | UnfitImage:
        """Compare an image's scores with the thresholds."""
        misfit = self._misfit(image.scores)
        return image if misfit is None else UnfitImage(misfit, image.scores)

    def missing(self, scores: Mapping[str, str]) -> set[str]:
        """Return the scores that the filters need and that are missing, or of another version."""
        return {name for name, version in self.versions.items() if _version(scores.get(name, "")) != version}

    def renewed(self, outcome: ImageOutcome) -> ImageOutcome | None:
        """Return an earlier outcome under the thresholds of now, or None if the image must be processed again.

        A record stands whatever its scores: it has its caption, and the clean step rejects what does not fit.
        """
        if isinstance(outcome, CaptionRecord) or outcome.threshold is None:
            return outcome
        misfit = self._misfit(outcome.scores)
        return None if misfit is None else UnfitImage(misfit, outcome.scores).rejection(outcome)

    def in_batches(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yield items in batches for the filters' models; one by one if there are no models."""
        size = self._config.batch_size if len(self.versions) > len(PIXEL_SCORES) else 1
        batch: list[T] = []
        for item in items:
            batch.append(item)
            if len(batch) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _misfit(self, scores: Mapping[str, str]) -> FilterFailure | None:
        """Compare the scores with the thresholds, as far as they are of the versions of now."""
        return check_scores({name: scores[name] for name in self.versions.keys() - self.missing(scores)}, self._config)

    def _formatted(self, scores: Mapping[str, float]) -> dict[str, str]:
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
