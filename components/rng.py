"""Counter-based randomness: what is drawn depends on where a sample stands in the run, never on who draws it.

Every number comes from Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) with the key
(seed, stream) and the counter (epoch, position). There is no state to save, and rank, world size, worker and restart
do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import prod

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What a number is drawn for; two streams of one position are independent. The values are part of the format."""

    NOISE = 1
    TIMESTEP = 2
    CAPTION_DROPOUT = 3
    LATENT = 4
    SAMPLING = 5
    AUTOENCODER_BATCH = 6
    AUTOENCODER_NOISE = 7


def generator(seed: int, epoch: int, position: int, stream: Stream) -> np.random.Generator:
    """Return the generator of one sample's numbers.

    Args:
        seed: The run's seed, 0 ≤ seed < 2⁶⁴.
        epoch: The pass over the data, from 0.
        position: The sample's place in the epoch's global order, from 0.
        stream: What the numbers are for.
    """
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, 0, position, epoch]))


def normals(
    seed: int, epoch: int, positions: Sequence[int], stream: Stream, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return standard normal numbers of shape ``[len(positions), *shape]``.

    They are drawn in double precision and rounded: the ziggurat's rare tail uses the C library's logarithm, whose
    last bit differs between machines, and rounding to single precision hides it.
    """
    rows = np.empty((len(positions), prod(shape)), dtype=np.float32)
    for row, position in zip(rows, positions, strict=True):
        row[:] = generator(seed, epoch, position, stream).standard_normal(row.size)
    return rows.reshape(len(positions), *shape)


def uniforms(seed: int, epoch: int, positions: Sequence[int], stream: Stream) -> NDArray[np.float64]:
    """Return one number in [0, 1) per position, of shape ``[len(positions)]``."""
    return np.array([generator(seed, epoch, position, stream).random() for position in positions], dtype=np.float64)
