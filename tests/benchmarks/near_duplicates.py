"""How long it takes, and how much memory, to find near duplicates among many pictures' hashes.

    python tests/benchmarks/near_duplicates.py --hashes 1000000

Each case is a process of its own, so that its memory is its own; what the interpreter and NumPy take is left out. The
last cases are as bad as hashes can be: all the same, all near one, and a quarter of the bits that never vary.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from components.clean.near_duplicates import Hashes, near_duplicates

MEGABYTE = 1 << 20
FLIPS = 5


def different(count: int) -> Hashes:
    """Return hashes with nothing in common."""
    return _numbers(count, 64)


def copies(count: int) -> Hashes:
    """Return hashes of which each third one is a slightly changed copy of another."""
    hashes = _numbers(count, 64)
    hashes[::3] = hashes[np.random.default_rng(1).permutation(count)[: len(hashes[::3])]] ^ np.uint64(0x8001)
    return hashes


def same(count: int) -> Hashes:
    """Return one hash many times."""
    return np.full(count, 7, np.uint64)


def crowded(count: int) -> Hashes:
    """Return hashes that lie within a few bits of one."""
    places = np.random.default_rng(2).integers(0, 64, (FLIPS, count), np.uint64)
    hashes: Hashes = np.bitwise_xor.reduce(np.uint64(1) << places, axis=0)
    return hashes


def poor(count: int) -> Hashes:
    """Return hashes with 16 bits that are always the same."""
    return _numbers(count, 48)


CASES: dict[str, Callable[[int], Hashes]] = {
    "different": different, "copies": copies, "same": same, "crowded": crowded, "poor": poor
}  # fmt: skip


def _numbers(count: int, bits: int) -> Hashes:
    return np.random.default_rng(0).integers(0, 1 << bits, count, np.uint64)


def measure(case: str, count: int, distance: int) -> tuple[float, float, int]:
    """Return seconds of one core, megabytes above what was there before, and how many pictures were kept."""
    hashes = CASES[case](count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()  # it is one thread; others that use the machine do not count
    kept = int(np.count_nonzero(near_duplicates(hashes, distance).keeper == np.arange(count)))
    seconds = time.process_time() - began
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MEGABYTE, kept


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hashes", type=int, default=1_000_000, help="how many pictures")
    parser.add_argument("--distances", type=int, nargs="+", default=[3, 7], help="most bits between near duplicates")
    arguments = parser.parse_args(argv)
    print(f"{arguments.hashes:,} hashes of 64 bits\n{'case':>10} {'bits':>5} {'seconds':>8} {'MB':>6} {'kept':>10}")
    for case in CASES:
        for distance in arguments.distances:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                seconds, megabytes, kept = pool.submit(measure, case, arguments.hashes, distance).result()
            print(f"{case:>10} {distance:>5} {seconds:>8.1f} {megabytes:>6.0f} {kept:>10,}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
