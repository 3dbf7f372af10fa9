"""Feature extractors that need no download: a random convolutional network, and small gray pixels.

Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models" (ICML 2020), found random embeddings to
tell real from generated images if ImageNet features do not apply, such as on digits. They see neither a slight blur
nor what a caption says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

# Channels in and out of each 3×3 convolution, and its stride.
_LAYERS = ((3, 32, 1), (32, 64, 2))
_CELLS = 4
_DIMENSIONS = 64
_SEED = 2020
_BATCH = 64


@dataclass(frozen=True)
class RandomFeatures:
    """Features of a small network with fixed random weights: convolutions, a coarse 4×4 grid of averages, a projection.

    The grid keeps where in the image something is, which a plain average would lose. Always on the CPU, so that the
    kind of accelerator does not matter.

    Args:
        side: Pixels to which both sides of an image are scaled.
    """

    side: int

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return _DIMENSIONS

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the features ``[N, 64]`` of RGB images of any size."""
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return np.concatenate([np.empty((0, _DIMENSIONS)), *map(self._batch, batches)])

    @torch.no_grad()
    def _batch(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        kernels, projection = self._weights
        scaled = [np.asarray(image.resize((self.side, self.side), Image.Resampling.BILINEAR)) for image in images]
        x = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2)  # [B, S, S, 3] -> [B, 3, S, S]
        x = x.float() / 127.5 - 1
        for kernel, (_, _, stride) in zip(kernels, _LAYERS, strict=True):
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, stride=stride, padding=1))
        x = torch.nn.functional.adaptive_avg_pool2d(x, _CELLS).flatten(1)  # [B, 64 · 4 · 4]
        features: NDArray[np.float64] = (x @ projection).double().numpy()  # [B, 64]
        return features

    @cached_property
    def _weights(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        # NumPy's Philox, since torch promises no equal numbers from one version to the next.
        random = np.random.Generator(np.random.Philox(key=_SEED))
        kernels = [
            _scaled_normals(random, (wide, deep, 3, 3), 2 / (9 * deep))  # He et al. 2015
            for deep, wide, _ in _LAYERS
        ]
        flat = _LAYERS[-1][1] * _CELLS * _CELLS
        return kernels, _scaled_normals(random, (flat, _DIMENSIONS), 1 / flat)


@dataclass(frozen=True)
class GrayPixels:
    """The pixels of small gray versions of the images, in 0..1.

    Args:
        side: Pixels to which both sides of an image are scaled.
    """

    side: int

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.side**2

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Return the pixels ``[N, side²]`` of images of any size."""
        small = [image.convert("L").resize((self.side, self.side), Image.Resampling.BOX) for image in images]
        pixels = [np.asarray(image, dtype=np.float64).ravel() / 255 for image in small]
        return np.array(pixels).reshape(len(images), self.dimensions)


def _scaled_normals(random: np.random.Generator, shape: tuple[int, ...], variance: float) -> torch.Tensor:
    return torch.from_numpy((random.standard_normal(shape) * np.sqrt(variance)).astype(np.float32))
