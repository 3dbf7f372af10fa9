"""How far drawn pictures are from real ones: the Fréchet distance between Gaussians fitted to image features.

Three things to know before reading a number:

- It has no natural scale. Read it beside the reference value, real training images against real held-out ones: a
  model at the reference cannot be told from the data by these features.
- It is biased: fewer pictures give a larger distance, even from the very same distribution (Chong & Forsyth,
  "Effectively Unbiased FID and Inception Score", CVPR 2020). Compare numbers of equal counts only. The reference is
  taken at the count of the drawn pictures for that reason.
- With fewer pictures than feature dimensions (64) a covariance is singular. The distance is still defined and finite,
  and blunt: draw some hundreds before trusting small differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two sets of vectors.

    ``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)``, Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge
    to a Local Nash Equilibrium" (NeurIPS 2017), eq. 6. The trace of the root is taken from the eigenvalues of the
    symmetric ``Σ₁^½ Σ₂ Σ₁^½``, which are those of ``Σ₁ Σ₂``: real and not negative even where Σ is singular, unlike
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
