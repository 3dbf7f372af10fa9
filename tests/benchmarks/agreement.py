"""What it costs the ranks to agree, each step, on whether to stop.

    python tests/benchmarks/agreement.py [--ranks 2] [--rounds 2000]

Adding up the loss for the report needs an all-reduce of one number anyway. The same processes time it, that of the
two numbers that agreeing sends, and all of what the loop calls, in a random order round after round, so that a busy
machine slows all alike.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from components.processes.stopping import Stopping
from components.train.processes.agreement import Agreement


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def all_reduce(numbers: int) -> float:
    """Make the host know the sums of so many numbers; return the first."""
    sums = torch.zeros(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(sums)
    return float(sums[0])


def run_rank(rounds: int) -> None:
    """Measure, as one of the ranks, and print medians on rank 0."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    agreement = Agreement(Stopping(), torch.device("cpu"))
    ways: dict[str, Callable[[], object]] = {
        "all-reduce of 1 number (the loss alone)": lambda: all_reduce(1),
        "all-reduce of 2 numbers": lambda: all_reduce(2),
        "Agreement.reach, all of it": lambda: agreement.reach(1, 0.5, {}),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)  # the same on every rank
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            times[name].append(seconds(ways[name]))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        for name, taken in times.items():
            print(f"{name:42}{statistics.median(taken) * 1e6:8.1f} µs")
    torch.distributed.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2000, help="measurements of each way")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(arguments.rounds)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = {**os.environ, **meeting, "WORLD_SIZE": str(arguments.ranks), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env={**world, "RANK": str(rank)})
        for rank in range(arguments.ranks)
    ]
    sys.exit(max(process.wait() for process in ranks))


if __name__ == "__main__":
    main()
