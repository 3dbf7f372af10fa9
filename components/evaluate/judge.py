"""Whether a drawn picture shows what was asked for, as told by a judge that has only ever seen real images.

The judge is a support vector machine on small gray pixels (Cortes & Vapnik 1995). It is meant for a closed set of
prompts that differ at a glance, such as ten digits; its accuracy on held-out real images says how far to trust it.
It always names one of the prompts, so a picture of nothing is right by chance: read it beside the Fréchet distance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from components.evaluate.config import EvaluateConfig


class Judge:
    """A classifier of images into prompts.

    Args:
        gamma: Steepness of the kernel; None means 1 / (pixels · variance).
        c: Penalty for a misread training image.
        pixels: Gray pixels ``[N, P]`` in 0 … 1 of real images, none of them held out.
        captions: One of the prompts for each.
    """

    def __init__(self, gamma: float | None, c: float, pixels: NDArray[np.float64], captions: Sequence[str]) -> None:
        self._classifier = SVC(gamma=gamma or "scale", C=c)
        self._classifier.fit(pixels, list(captions))

    def read(self, pixels: NDArray[np.float64]) -> list[str]:
        """Return the prompt that each image ``[N, P]`` looks most like, N ≥ 1."""
        return [str(prompt) for prompt in self._classifier.predict(pixels)]


def cannot_judge(config: EvaluateConfig, captions: Sequence[str]) -> str | None:
    """Say why no judge can be fitted to real images with these captions; None where one can."""
    if len(config.prompts) < 2:
        return "one prompt alone cannot be told from others; set more prompts"
    counts = Counter(captions)
    missing = [prompt for prompt in config.prompts if counts[prompt] < config.judge_images]
    if not missing:
        return None
    return (
        f"{len(missing)} of {len(config.prompts)} prompts are the caption of fewer than {config.judge_images} real "
        f"training images, the first of them {missing[0]!r}; set prompts that are captions to get this number"
    )
