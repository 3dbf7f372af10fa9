"""Memory of the order, and time to find a batch anywhere in it, from ten thousand samples to a billion.

    python tests/benchmarks/data_order.py

The index is simulated: shards of 1,000 training samples, equal (no memory for their sizes) or of differing sizes.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc

import numpy as np
from numpy.typing import NDArray

from components.train.data.order import Order

SIZE, BATCH, PLACES = 1000, 256, 20


def sizes_of(samples: int, differing: bool) -> NDArray[np.uint32]:
    """Return the sizes of shards; equal ones are one number that is looked at many times."""
    if not differing:
        return np.broadcast_to(np.uint32(SIZE), samples // SIZE)
    return np.random.default_rng(0).integers(SIZE - 20, SIZE + 21, samples // SIZE, dtype=np.uint32)


def measure(samples: int, differing: bool) -> tuple[int, float]:
    """Return the order's most bytes, with the sizes, and the median seconds for a batch at a place not seen before."""
    tracemalloc.start()
    order = Order(sizes_of(samples, differing), window=16, seed=0)
    last = 5 * order.samples // BATCH
    places = [turn * last // PLACES for turn in range(PLACES)]
    for place in places:
        order.batch(place, BATCH)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    seconds = []
    for place in places:
        began = time.perf_counter()
        order.batch(place + last // PLACES // 2, BATCH)
        seconds.append(time.perf_counter() - began)
    return peak, statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    for exponent in range(4, 10):
        for differing in (False, True):
            peak, seconds = measure(10**exponent, differing)
            kind = "differing" if differing else "equal"
            print(
                f"10^{exponent} samples, {kind:9} shards: {peak / 2**20:6.2f} MiB, {1e3 * seconds:5.2f} ms for a batch"
            )


if __name__ == "__main__":
    main()
