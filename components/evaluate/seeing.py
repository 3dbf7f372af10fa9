"""What is looked at of an image: random features for the Fréchet distance, small gray pixels for the judge.

The features are those of a small convolutional network with fixed random weights, so nothing is downloaded and no
domain is favoured. Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (ICML 2020), found
random embeddings to tell real from generated where ImageNet features do not apply, such as on digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

DIMENSIONS = 64

# Channels in and out of each 3×3 convolution, and its stride.
_LAYERS = ((3, 32, 1), (32, 64, 2))
_CELLS = 4
_SEED = 2020
_BATCH = 64


class Seen(NamedTuple):
    """What was looked at of N images: ``features`` ``[N, 64]``, and ``pixels`` ``[N, side²]``, gray in 0 … 1."""

    features: NDArray[np.float64]
    pixels: NDArray[np.float64]

    def rows(self, rows: Sequence[int]) -> Seen:
        """Return what was seen of some of the images."""
        chosen = np.array(rows, dtype=np.intp)
        return Seen(self.features[chosen], self.pixels[chosen])


class Eye:
    """Looks at images: random convolutions, a coarse 4×4 grid of averages, a random projection; and gray pixels.

    The grid keeps where in the image something is, which a plain average would lose. Always on the CPU, so that the
    kind of accelerator does not enter.

    Args:
        feature_side: Pixels to which both sides of an image are scaled for the features.
        pixel_side: Pixels to which they are scaled for the gray pixels.
    """

    def __init__(self, feature_side: int, pixel_side: int) -> None:
        self._feature_side = feature_side
        self._pixel_side = pixel_side
        # NumPy's Philox, since torch promises no equal numbers from one version to the next.
        random = np.random.Generator(np.random.Philox(key=_SEED))
        self._kernels = [
            (_scaled_normals(random, (wide, deep, 3, 3), 2 / (9 * deep)), stride)  # He et al. 2015
            for deep, wide, stride in _LAYERS
        ]
        flat = _LAYERS[-1][1] * _CELLS * _CELLS
        self._projection = _scaled_normals(random, (flat, DIMENSIONS), 1 / flat)

    def look(self, images: Sequence[Image.Image]) -> Seen:
        """Look at RGB images of any size."""
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        features = [np.empty((0, DIMENSIONS)), *map(self._features, batches)]
        pixels = [np.empty((0, self._pixel_side**2)), *map(self._pixels, batches)]
        return Seen(np.concatenate(features), np.concatenate(pixels))

    @torch.no_grad()
    def _features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        size = (self._feature_side, self._feature_side)
        small = [np.asarray(image.resize(size, Image.Resampling.BILINEAR)) for image in images]
        x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)  # [B, S, S, 3] -> [B, 3, S, S]
        x = x.float() / 127.5 - 1
        for kernel, stride in self._kernels:
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, stride=stride, padding=1))
        x = torch.nn.functional.adaptive_avg_pool2d(x, _CELLS).flatten(1)  # [B, 64 · 4 · 4]
        found: NDArray[np.float64] = (x @ self._projection).double().numpy()  # [B, 64]
        return found

    def _pixels(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        size = (self._pixel_side, self._pixel_side)
        small = [image.convert("L").resize(size, Image.Resampling.BOX) for image in images]
        return np.stack([np.asarray(image, dtype=np.float64).ravel() / 255 for image in small])


def _scaled_normals(random: np.random.Generator, shape: tuple[int, ...], variance: float) -> torch.Tensor:
    return torch.from_numpy((random.standard_normal(shape) * np.sqrt(variance)).astype(np.float32))
