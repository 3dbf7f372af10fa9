"""Normals per second of `components.rng` beside NumPy's and PyTorch's generators, for SD1.5-size latents.

    python tests/benchmarks/data_random.py [--rounds 50]

Each sample takes 4×64×64 normals for its noise and as many for the autoencoder's posterior. All draw a batch of 64 on
one thread, in turn; the ratios are medians over the rounds. Only the first gives the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from components.rng import Stream, fill_normals, generator

BATCH, LATENT = 64, 4 * 64 * 64


def contestants() -> dict[str, Callable[[], object]]:
    """Return what draws the normals of one batch, by name."""
    rows = np.empty((BATCH, LATENT), dtype=np.float32)
    tensor = torch.empty(BATCH, LATENT)

    def ours() -> None:
        for stream in (Stream.NOISE, Stream.LATENT):
            fill_normals(rows, 0, [0] * BATCH, range(BATCH), stream)

    def ziggurat(dtype: type[np.float32] | type[np.float64]) -> None:
        for stream in (Stream.NOISE, Stream.LATENT):
            for position, row in enumerate(rows):
                row[:] = generator(0, 0, position, stream).standard_normal(LATENT, dtype=dtype)

    def torch_rows() -> None:
        for _ in range(2):
            for row in tensor:
                row.normal_()

    return {
        "components.rng": ours,
        "NumPy's ziggurat, double": lambda: ziggurat(np.float64),
        "NumPy's ziggurat, single": lambda: ziggurat(np.float32),
        "torch.Tensor.normal_": torch_rows,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="batches that each draws")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    draw = contestants()
    seconds: dict[str, list[float]] = {name: [] for name in draw}
    for _ in range(rounds + 1):
        for name, function in draw.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    ours = seconds["components.rng"][1:]  # the first round warms up
    for name, rows in seconds.items():
        per_normal = 1e9 * statistics.median(rows[1:]) / (2 * BATCH * LATENT)
        ratio = statistics.median(other / own for other, own in zip(rows[1:], ours, strict=True))
        rate = BATCH / statistics.median(rows[1:])
        print(f"{name:26} {per_normal:6.2f} ns per normal  {rate:8,.0f} samples/s  {ratio:5.2f} x our time")


if __name__ == "__main__":
    main()
