"""How far generated images are from real ones: the Fréchet distance between Gaussians fitted to image features.

Three things to know before trusting a number:

- It has no natural scale. Read it beside its reference, real training images against real held-out ones: a model at
  the reference cannot be distinguished from the data by these features.
- It is biased: fewer images give a larger distance, even from the very same distribution (Chong & Forsyth,
  "Effectively Unbiased FID and Inception Score", CVPR 2020). Compare numbers of equal counts only. For that reason
  the reference is computed from as many images as were generated.
- With fewer images than feature dimensions (64) a covariance is singular. The distance is still defined and finite,
  but blunt: generate some hundreds of images before trusting small differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.evaluate.metric import FeatureExtractor, Metric, MetricInput, Need, Score
from components.settings import Settings


class FrechetSettings(Settings):
    """The Fréchet distance over the built-in features."""

    side: int = Field(64, ge=8, le=512, description="side in pixels to which images are scaled for the features")


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two sets of vectors.

    ``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)``, Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge
    to a Local Nash Equilibrium" (NeurIPS 2017), eq. 6. The trace of the root is taken from the eigenvalues of the
    symmetric ``Σ₁^½ Σ₂ Σ₁^½``, which are those of ``Σ₁ Σ₂``: real and not negative even if Σ is singular, unlike
    the general matrix root.

    Args:
        a: Features ``[N, D]``, N ≥ 2.
        b: Features ``[M, D]``, M ≥ 2.

    Returns:
        A finite number ≥ 0.
    """
    assert min(len(a), len(b)) >= 2, "a covariance takes two vectors"
    shift = float(np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    return max(0.0, shift + float(np.trace(first) + np.trace(second) - 2 * shared))


def _extractor(settings: FrechetSettings) -> FeatureExtractor:
    from components.evaluate.features import RandomFeatures

    return RandomFeatures(settings.side)


def _measure(_: FrechetSettings, images: MetricInput) -> Score:
    generated, held_out = images.generated.vectors, images.held_out.vectors
    train = images.train.vectors[: len(generated)]  # the distance depends on the count
    value, reference = (
        frechet_distance(vectors, held_out) if min(len(vectors), len(held_out)) >= 2 else None
        for vectors in (generated, train)
    )
    reason = (
        f"it takes two images of each kind; there are {len(held_out)} held-out, {len(train)} training and "
        f"{len(generated)} generated images"
    )
    return Score(value, reference, reason)


METRIC = Metric(
    label="Fréchet distance",
    description="distance of the generated images from real held-out images",
    unit="number",
    direction="lower",
    estimator="Fréchet distance of Gaussians over 64 features of a random convolutional network",
    reference_label="real training images",
    needs=frozenset({Need.HELD_OUT_IMAGES}),
    settings=FrechetSettings(),
    extractor=_extractor,
    measure=_measure,
    caveat="It compares all images with all real ones, whatever their prompts; another dataset has another scale.",
)
