"""The share of generated images that show what their prompt asks for, as judged by a classifier of real images.

The judge is a support vector machine on small gray pixels (Cortes & Vapnik 1995), fitted to real training images
whose caption is one of the prompts. It is meant for a closed set of prompts that differ at a glance, such as ten
digits; its accuracy on held-out real images, the reference, says how far to trust it. It always names one of the
prompts, so an image of nothing is right by chance: read it beside a distance from real images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.evaluate.metric import FeatureExtractor, Features, Metric, MetricInput, Need, Score
from components.settings import Settings

if TYPE_CHECKING:
    from sklearn.svm import SVC


class JudgeSettings(Settings):
    """The judge that reads which prompt an image shows."""

    side: int = Field(16, ge=2, le=128, description="side in pixels to which images are scaled for the judge, in gray")
    gamma: float | None = Field(
        None, gt=0, le=1e12, description="steepness of the judge's RBF kernel; null means 1 / (pixels · variance)"
    )
    c: float = Field(5.0, gt=0, le=1e9, description="the judge's penalty for a misread training image")
    min_images: int = Field(
        5, ge=1, le=1_000_000, description="real training images of each prompt below which no judge is fitted"
    )


class Judge:
    """A classifier of images into prompts.

    Args:
        settings: How it is fitted.
        pixels: Gray pixels ``[N, P]`` in 0..1 of real images, none of them held out.
        captions: One of the prompts for each.
    """

    def __init__(self, settings: JudgeSettings, pixels: NDArray[np.float64], captions: Sequence[str]) -> None:
        from sklearn.svm import SVC

        self._classifier: SVC = SVC(gamma=settings.gamma or "scale", C=settings.c)
        self._classifier.fit(pixels, list(captions))

    def is_right(self, images: Features) -> NDArray[np.bool_]:
        """Return for each of N ≥ 0 images whether it looks most like its caption, ``[N]``."""
        if not len(images):
            return np.zeros(0, dtype=bool)
        predicted = self._classifier.predict(images.vectors)
        return np.array([str(one) == caption for one, caption in zip(predicted, images.captions, strict=True)])


def why_no_judge(settings: JudgeSettings, prompts: Sequence[str], captions: Sequence[str]) -> str:
    """Return why no judge can be fitted to real images with these captions; empty if one can."""
    if len(prompts) < 2:
        return "a judge needs at least two prompts to choose from; set more prompts"
    counts = Counter(captions)
    missing = [prompt for prompt in prompts if counts[prompt] < settings.min_images]
    if not missing:
        return ""
    return (
        f"{len(missing)} of {len(prompts)} prompts are the caption of fewer than {settings.min_images} real "
        f"training images, the first of them {missing[0]!r}; set prompts that are captions to get this number"
    )


def _extractor(settings: JudgeSettings) -> FeatureExtractor:
    from components.evaluate.features import GrayPixels

    return GrayPixels(settings.side)


def _measure(settings: JudgeSettings, images: MetricInput) -> Score:
    train = images.train.captioned(images.prompts)
    if reason := why_no_judge(settings, images.prompts, train.captions):
        return Score(None, reason=reason)
    judge = Judge(settings, train.vectors, train.captions)
    right = judge.is_right(images.generated)
    real = judge.is_right(images.held_out.captioned(images.prompts))
    asked = np.array(images.generated.captions, dtype=object)
    return Score(
        value=float(right.mean()),
        reference=float(real.mean()) if len(real) else None,
        reason="no held-out image has one of the prompts as its caption",
        by_prompt={prompt: float(right[asked == prompt].mean()) for prompt in images.prompts},
    )


METRIC = Metric(
    label="Prompt accuracy",
    description="share of the generated images that the judge reads as their prompt",
    unit="share",
    direction="higher",
    estimator="support vector machine on small gray pixels, fitted to real training images",
    reference_label="real held-out images",
    needs=frozenset({Need.TWO_PROMPTS}),
    settings=JudgeSettings(),
    extractor=_extractor,
    measure=_measure,
    judge="a classifier of small gray pixels",
    caveat=(
        "The judge sees neither colour nor fine detail, and it always names one of the prompts, so that an image of "
        "nothing is right by chance."
    ),
)
