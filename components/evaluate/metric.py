"""What a metric is: a file in ``metrics/`` fills in one `Metric`, and nothing else needs to know it.

This module and the files in ``metrics/`` import neither torch nor scikit-learn when they are loaded, so that settings
can offer all metrics by name; functions import what they need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.model.metric_results import Direction, MetricResult, Unit
from components.settings import Settings

S = TypeVar("S", bound=Settings)


class Need(Enum):
    """What a metric cannot do without; the value says it to a person."""

    TWO_PROMPTS = "at least two prompts"
    HELD_OUT_IMAGES = "held-out images"


class FeatureExtractor(Protocol):
    """Turns images into vectors. Extractors that are equal compute the same, so they are run once for all metrics."""

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the features ``[N, dimensions]`` of N RGB images of any size, N ≥ 0."""

    def __hash__(self) -> int:
        """Equal extractors have equal hashes."""


@dataclass(frozen=True)
class Features:
    """Features of N images: ``vectors`` ``[N, D]``, and their captions; a generated image's caption is its prompt."""

    vectors: NDArray[np.float64]
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, rows: Sequence[int]) -> Features:
        """Return the features of some of the images."""
        return Features(self.vectors[np.array(rows, dtype=np.intp)], [self.captions[row] for row in rows])

    def captioned(self, captions: Container[str]) -> Features:
        """Return the features of the images that have one of some captions."""
        return self.rows([row for row, caption in enumerate(self.captions) if caption in captions])


@dataclass(frozen=True)
class MetricInput:
    """All that a metric is computed from.

    Attributes:
        prompts: What was asked for.
        generated: Images that the model drew, as many of each prompt as of any other.
        train: Real images that the model was trained on.
        held_out: Real images that it was not trained on.
    """

    prompts: Sequence[str]
    generated: Features
    train: Features
    held_out: Features


@dataclass(frozen=True)
class Score:
    """What a metric computed.

    Attributes:
        value: None if it could not be measured.
        reference: The same measure on real images; None if it could not be measured.
        reason: Why there is no value, or no reference.
        by_prompt: The value for each prompt alone, if the metric has one.
    """

    value: float | None
    reference: float | None = None
    reason: str = ""
    by_prompt: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(Generic[S]):
    """One metric; see `MetricResult` for the fields that end up there.

    Attributes:
        label: Its name for a person, as it begins a sentence.
        description: What it measures, and of what.
        unit: How people read its values.
        direction: Which of two values is better.
        estimator: How it is computed.
        reference_label: Which real images give the reference value.
        needs: What there must be for it to decide about promotion.
        settings: Its own settings with their defaults; an empty `Settings` if it has none.
        extractor: Makes what turns images into vectors.
        measure: Computes the score.
        judge: Who or what decides about an image; empty if nobody does.
        caveat: What the value does not show; empty if there is nothing to warn of.
    """

    label: str
    description: str
    unit: Unit
    direction: Direction
    estimator: str
    reference_label: str
    needs: frozenset[Need]
    settings: S
    extractor: Callable[[S], FeatureExtractor]
    measure: Callable[[S, MetricInput], Score]
    judge: str = ""
    caveat: str = ""

    def result(self, score: Score, samples: int) -> MetricResult:
        """Return a score as ``evaluation.json`` holds it.

        Args:
            score: What was computed.
            samples: Generated images that it was computed from.
        """
        value, reference, reason = _finite(score.value), _finite(score.reference), score.reason
        if (value, reference) != (score.value, score.reference):
            reason = "the result is not a finite number"
        return MetricResult(
            label=self.label,
            description=self.description,
            unit=self.unit,
            direction=self.direction,
            estimator=self.estimator,
            samples=samples,
            status="not run" if value is None else "measured",
            value=value,
            reference=reference,
            reference_label=self.reference_label,
            reason=reason if value is None or reference is None else "",
            judge=self.judge,
            caveat=self.caveat,
        )


def _finite(value: float | None) -> float | None:
    """Return a number that JSON can hold, else None."""
    return value if value is not None and math.isfinite(value) else None
