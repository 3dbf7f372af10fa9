"""What real training processes cost: time blocked in saves, and two ranks beside two runs of one.

    python -m tests.benchmarks.processes [stall|ranks]

``stall``: the share of a run's time that it stands still for checkpoints, saved every 10 steps and once a minute.
``ranks``: images per second of two ranks that share a global batch, beside two independent runs of one rank each on
the same two cores; what is lost is what reducing gradients and waiting for one another costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.model.architecture import Architecture, UnetArchitecture
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.benchmarks.training_step import SIZES, write_samples
from tests.models import commit_all


def prepare(root: Path, channels: tuple[int, int]) -> Storage:
    """Write a dataset of random latents, and a base model whose UNet has as many channels."""
    from components.autoencoder.scratch import build_scratch

    workdir = open_storage(str(root))
    (root / "datasets/key").mkdir(parents=True)
    write_samples(workdir.child("datasets/key"), 512, SIZES["demo"])
    architecture = Architecture(unet=UnetArchitecture(channels=channels))
    build_scratch(architecture, ["a handwritten digit three"], seed=0).save_pretrained(root / "models/base/bench")
    commit_all(workdir.child("models/base/bench"))
    return workdir


def start(workdir: Storage, run: str, settings: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start one training."""
    command = [sys.executable, "-m", "components.train", "--workdir", workdir.url, "--run", run]
    command += ["--encoding-key", "key", "--base-model", "workdir:models/base/bench"]
    for name, value in settings.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds_per_step(workdir: Storage, run: str) -> float:
    """Return the median time of a run's steps, without the first ones."""
    lines = list(workdir.read_lines(f"runs/{run}/metrics.jsonl"))[5:]
    return float(statistics.median(line["seconds"] for line in lines))


def stall(root: Path) -> None:
    """Measure and print the share of time blocked in saves."""
    workdir = prepare(root, channels=(128, 192))
    settings = {"steps": 60, "global_batch": 64, "micro_batch": 64, "checkpoint": {"every": 10}}
    if start(workdir, "stall", settings).wait():
        raise SystemExit("the training failed")
    step = seconds_per_step(workdir, "stall")
    events = list(workdir.read_lines("runs/stall/events.jsonl"))
    # The last save is waited for, whatever it takes; a run has one of those.
    stalls = [event["stall_seconds"] for event in events if event["event"] == "checkpoint"][:-1]
    size = sum(entry.size for entry in workdir.list("runs/stall/checkpoints/step-000000060"))
    each = statistics.mean(stalls)
    print(f"state {size / 1e6:.0f} MB, step {step:.3f} s, blocked {each:.4f} s per save (worst {max(stalls):.4f} s)")
    print(f"saved every 10 steps  {each / (each + 10 * step):7.2%} of the time blocked")
    print(f"saved once a minute   {each / 60:7.2%} of the time blocked")


def ranks(root: Path) -> None:
    """Measure and print how two ranks compare with two runs of one."""
    workdir = prepare(root, channels=(32, 48))
    common = {"steps": 80, "micro_batch": 32, "checkpoint": {"every": 1000}}
    shares = []
    for turn in range(3):
        alone = [start(workdir, f"alone-{turn}-{i}", {**common, "global_batch": 32}) for i in range(2)]
        if any(process.wait() for process in alone):
            raise SystemExit("a training failed")
        if start(workdir, f"together-{turn}", {**common, "global_batch": 64, "ranks": 2}).wait():
            raise SystemExit("a training failed")
        apart = sum(32 / seconds_per_step(workdir, f"alone-{turn}-{i}") for i in range(2))
        together = 64 / seconds_per_step(workdir, f"together-{turn}")
        shares.append(together / apart)
        print(f"two runs of one rank {apart:7.0f} images/s, one run of two ranks {together:7.0f} images/s")
    print(f"efficiency of two ranks {statistics.median(shares):.2f} (median of {len(shares)} turns)")


def main() -> None:
    """Measure what is asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["stall", "ranks"], help="stall, ranks, or both")
    for what in parser.parse_args().what:
        with tempfile.TemporaryDirectory() as folder:
            {"stall": stall, "ranks": ranks}[what](Path(folder))


if __name__ == "__main__":
    main()
