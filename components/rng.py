"""Counter-based randomness: numbers depend on a sample's position in the run, never on the process that draws them.

There is no state to save, and rank, world size, worker and restart do not enter. The same numbers come out on every
machine, to the last bit:

* Bits for normals are Philox's (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) with the key
  (seed, stream) and the counter (epoch, position). That is integer arithmetic, and NumPy promises the stream of a bit
  generator for good (NEP 19), though not what its distributions make of it.
* A normal is the sum or difference of four table entries, times a constant. Each 16 bits pick one of 65,536 equally
  likely quantiles of the normal distribution; four such are rotated by a 4×4 Hadamard matrix over 2, and since a
  rotation of independent normals gives independent normals, four numbers go in and four come out. The table holds
  integers below 2¹⁹, so sums are exact in float32, and each result is rounded once, in the product. No logarithm, sine
  or rejection is left whose last bit could differ between processors. The table is made with a logarithm, but no
  entry lies nearer than 10⁻⁶ to where it would round the other way, and its digest is checked.
* Uniforms are SplitMix64's finalizer over key, epoch and position: integer arithmetic, too.

The ziggurat that this replaces took five times as long, and called the C library's logarithm and exponential. What the
table costs: no number lies beyond 8.6 standard deviations, and the kurtosis is 2.9998.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from math import prod, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.digests import sha256
from components.errors import DarkroomError

_CELLS = 1 << 16
_UNIT = 1 << 16  # the table's entries are quantiles in units of 2⁻¹⁶
_TABLE_SHA256 = "e3bed71cc10c1b6254d508311df0416d6ec8d6b8458e76c757c2cc31ecfafa27"


class Stream(IntEnum):
    """The purpose of a number; two streams of one position are independent. The values are part of the format."""

    NOISE = 1
    TIMESTEP = 2
    CAPTION_DROPOUT = 3
    LATENT = 4
    SAMPLING = 5
    AUTOENCODER_BATCH = 6
    AUTOENCODER_NOISE = 7
    VARIANT = 8


def generator(seed: int, epoch: int, position: int, stream: Stream) -> np.random.Generator:
    """Return the generator of one sample's numbers.

    Args:
        seed: The run's seed, 0 ≤ seed < 2⁶⁴.
        epoch: The pass over the data, from 0.
        position: The sample's position in the epoch's global order, from 0.
        stream: The purpose of the numbers.
    """
    return np.random.Generator(_philox(seed, epoch, position, stream))


def normals(
    seed: int, epoch: int, positions: Sequence[int], stream: Stream, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return standard normal numbers of shape ``[len(positions), *shape]``."""
    rows = np.empty((len(positions), prod(shape)), dtype=np.float32)
    fill_normals(rows, seed, [epoch] * len(positions), positions, stream)
    return rows.reshape(len(positions), *shape)


def fill_normals(
    rows: NDArray[np.float32], seed: int, epochs: Sequence[int], positions: Sequence[int], stream: Stream
) -> None:
    """Write standard normal numbers into ``rows``, ``[B, n]``: into each those of its own epoch and position."""
    table = _table()
    columns = -(-rows.shape[1] // 4)
    # One row's worth of scratch stays in the processor's cache.
    cells = np.empty(4 * columns, dtype=np.intp)
    drawn = np.empty((2, 2, columns), dtype=np.float32)
    halves = np.empty((2, 2, columns), dtype=np.float32)
    for row, epoch, position in zip(rows, epochs, positions, strict=True):
        bits = _philox(seed, epoch, position, stream).random_raw(columns)
        cells[:] = bits.astype("<u8", copy=False).view("<u2")
        # No index can lie outside the table; "wrap" only spares the check.
        table.quantiles.take(cells, out=drawn.reshape(-1), mode="wrap")
        np.add(drawn[0], drawn[1], out=halves[0])
        np.subtract(drawn[0], drawn[1], out=halves[1])
        np.add(halves[:, 0], halves[:, 1], out=drawn[:, 0])
        np.subtract(halves[:, 0], halves[:, 1], out=drawn[:, 1])
        np.multiply(drawn.reshape(-1)[: len(row)], table.scale, out=row)


def uniforms(seed: int, epoch: ArrayLike, positions: ArrayLike, stream: Stream) -> NDArray[np.float64]:
    """Return one number in [0, 1) per position, of the positions' shape; ``epoch`` is one for all or one for each."""
    start = np.uint64(hash_key(seed, int(stream)))
    # Sums of 64-bit words wrap around, and NumPy warns of that only for single words.
    epochs = np.atleast_1d(np.asarray(epoch, dtype=np.uint64))
    words = scramble(scramble(epochs + start) + np.asarray(positions, dtype=np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_key(*parts: int) -> int:
    """Fold numbers into one 64-bit key; the same numbers in another order give another key."""
    hashed = hashlib.blake2b(b",".join(b"%d" % part for part in parts), digest_size=8).digest()
    return int.from_bytes(hashed, "little")


def scramble(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words with the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), a bijection."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _philox(seed: int, epoch: int, position: int, stream: Stream) -> np.random.Philox:
    return np.random.Philox(key=[seed, int(stream)], counter=[0, 0, position, epoch])


class _Table(NamedTuple):
    """Quantiles of the normal distribution as whole numbers, and what makes a sum of four of them standard normal."""

    quantiles: NDArray[np.float32]
    scale: np.float32


@lru_cache(maxsize=1)
def _table() -> _Table:
    """Return the quantile of the middle of each of 65,536 equally likely cells.

    Raises:
        DarkroomError: If this machine computes another table than all others, so that no run would be repeatable.
    """
    normal = NormalDist()  # Wichura's algorithm AS241, Applied Statistics 37 (1988)
    upper = [round(_UNIT * normal.inv_cdf((cell + 0.5) / _CELLS)) for cell in range(_CELLS // 2, _CELLS)]
    half = np.array(upper, dtype="<i4")
    if (actual := sha256(half.tobytes())) != _TABLE_SHA256:
        raise DarkroomError(
            f"the table of normal quantiles has digest {actual[:16]}… here, expected {_TABLE_SHA256[:16]}…: this "
            "machine's logarithm differs from all others; train on another one, and please report it"
        )
    square = 2 * sum(value * value for value in upper) / _CELLS
    return _Table(np.concatenate([-half[::-1], half]).astype(np.float32), np.float32(1 / (2 * sqrt(square))))
