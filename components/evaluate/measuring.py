"""What is measured of drawn pictures, against a yardstick that only real images make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.evaluate.config import EvaluateConfig
from components.evaluate.frechet import frechet_distance
from components.evaluate.judge import Judge, cannot_judge
from components.evaluate.real_images import RealImages, Side
from components.evaluate.seeing import Eye


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        metrics: By name; a number that could not be measured is None.
        unknown: For each such number the reason, for a person.
        prompts: For each prompt how many pictures were drawn and how many of them show it (None without a judge).
    """

    metrics: dict[str, float | None]
    unknown: dict[str, str]
    prompts: list[dict[str, Any]]


class Yardstick:
    """What does not depend on the model: features of real images, and a judge fitted to real images.

    Args:
        config: What is drawn and how it is looked at.
        eye: Looks at the pictures, as it looked at the real images.
        real: What was seen of real images of both sides.
    """

    def __init__(self, config: EvaluateConfig, eye: Eye, real: RealImages) -> None:
        self._eye = eye
        self._held_out = real.held_out.seen.features
        # The distance depends on the count, so the reference is taken at that of the drawn pictures.
        self._trained_on = real.train.seen.features[: len(config.prompts) * config.images_per_prompt]
        train = real.train.captioned(config.prompts)
        self._no_judge = cannot_judge(config, train.captions)
        self._judge = (
            None if self._no_judge else Judge(config.judge_gamma, config.judge_c, train.seen.pixels, train.captions)
        )
        self._judge_accuracy = self._accuracy(real.held_out.captioned(config.prompts))

    def measure(self, drawn: Iterable[tuple[str, Sequence[Image.Image]]]) -> Measurement:
        """Measure pictures that come prompt by prompt; they are not kept."""
        features, prompts, right = [], [], 0
        for prompt, images in drawn:
            seen = self._eye.look(images)
            features.append(seen.features)
            correct = self._judge.read(seen.pixels).count(prompt) if self._judge else None
            right += correct or 0
            prompts.append({"prompt": prompt, "images": len(images), "correct": correct})
        generated = np.concatenate(features)
        metrics = {
            "prompt_accuracy": right / len(generated) if self._judge else None,
            "frechet_distance": self._distance(generated),
            "frechet_reference": self._distance(self._trained_on),
            "judge_accuracy": self._judge_accuracy,
            "generated": len(generated),
        }
        return Measurement(metrics, self._reasons(metrics), prompts)

    def _distance(self, features: NDArray[np.float64]) -> float | None:
        """Return the distance to the held-out images, None where either side has too few for a covariance."""
        return frechet_distance(features, self._held_out) if min(len(features), len(self._held_out)) >= 2 else None

    def _accuracy(self, held_out: Side) -> float | None:
        """Return the share of real images that the judge reads as their caption, None where that cannot be told."""
        if self._judge is None or not held_out.captions:
            return None
        read = self._judge.read(held_out.seen.pixels)
        right = sum(found == caption for found, caption in zip(read, held_out.captions, strict=True))
        return right / len(read)

    def _reasons(self, metrics: dict[str, float | None]) -> dict[str, str]:
        """Say of each number that could not be measured why."""
        counts = f"{len(self._held_out)} held-out and {len(self._trained_on)} training images could be read"
        reasons = {
            "prompt_accuracy": self._no_judge,
            "frechet_distance": f"{counts}, and {metrics['generated']} were drawn; it takes two of each",
            "frechet_reference": f"{counts}; it takes two of each",
            "judge_accuracy": self._no_judge or "no held-out image has one of the prompts as its caption",
        }
        return {name: str(reasons[name]) for name, value in metrics.items() if value is None}
