"""Samples per second of shuffled reading beside webdataset, mosaicml-streaming and a bare loop of copies.

    python tests/benchmarks/data_reader.py [--samples 8192] [--rounds 9] [--streaming-python PATH]

Samples have the size of Stable Diffusion 1.5's at 512²: moments 8×64×64 and text 77×768, fp16, 184 kB. All read batches
of 64 from a warm disk, each in a process of its own, a block of batches each in turn, so that a busy machine slows all
alike; the ratios are medians over the rounds. What only one process works at is also compared by its processor time,
which others on the machine disturb less. "The limit" is a loop that copies the same samples out of memory-mapped
shards into batch buffers. mosaicml-streaming wants older releases of what Darkroom needs, so it lives in an environment
of its own (`make bench` makes build/streaming); without one it is left out.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, pack
from components.dataset.versions import Shard, make_dataset, read_dataset, write_dataset
from components.digests import sha256
from components.storage.open import open_storage
from components.train.config import DataConfig, TrainConfig
from components.train.data.buffers import Buffers
from components.train.data.reader import Drawing, Reader
from components.train.data.samples import Samples

MOMENTS, TEXT = (8, 64, 64), (77, 768)
BATCH, BLOCK = 64, 16  # samples per batch, batches per turn
SHARD = 512  # samples, 97 MB
ROOT = Path(__file__).parents[2]

Batches = Iterator[Any]


def write_shards(folder: Path, samples: int) -> None:
    """Write a dataset of random samples."""
    storage, rng, shards = open_storage(str(folder)), np.random.default_rng(0), []
    for first in range(0, samples, SHARD):
        packed = [random_sample(rng, number) for number in range(first, min(first + SHARD, samples))]
        tar, index = pack(packed)
        name = f"shards/512x512/{first:016x}"
        storage.write(f"{name}.tar", tar)
        storage.write(f"{name}.idx", index)
        shards.append(Shard(name, (512, 512), len(packed), len(tar), sha256(tar)))
    write_empty_prompt(storage, EmptyPrompt(np.zeros(TEXT, dtype=np.float16)))
    write_dataset(storage, make_dataset("key", {}, shards, rejected=0))


def random_sample(rng: np.random.Generator, number: int) -> Sample:
    """Return a sample whose JSON has one of many lengths, as captions do."""
    key = sha256(b"%d" % number)
    moments, text = (rng.random(shape, dtype=np.float32).astype(np.float16) for shape in (MOMENTS, TEXT))
    return Sample(key, moments, text, {"sha256": key, "caption": "word " * (number % 40), "caption_digest": key[:16]})


def bare(folder: Path) -> Batches:
    """Copy samples in random order out of memory-mapped shards: what no reader can beat on one thread."""
    places = []
    for path in sorted(folder.glob("shards/*/*.tar")):
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(mapped, dtype=np.float16, count=len(mapped) // 2)
        for entry in json.loads(path.with_suffix(".idx").read_bytes())["samples"]:
            places.append((values, *((entry["offsets"][name][0] + 128) // 2 for name in ("moments.npy", "text.npy"))))
    moments, text = np.empty((BATCH, 8 * 64 * 64), np.float16), np.empty((BATCH, 77 * 768), np.float16)
    shuffle = random.Random(0)
    while True:
        shuffle.shuffle(places)
        for first in range(0, len(places) - BATCH + 1, BATCH):
            for row, (values, start, text_start) in enumerate(places[first : first + BATCH]):
                moments[row] = values[start : start + 8 * 64 * 64]
                text[row] = values[text_start : text_start + 77 * 768]
            yield torch.from_numpy(moments), torch.from_numpy(text)


def darkroom(folder: Path) -> Batches:
    """Read as the trainer does, without drawing noise, on the thread that asks."""
    storage = open_storage(str(folder))
    dataset = read_dataset(storage)
    assert dataset is not None
    samples = Samples(dataset, storage, config(), seed=0, rank=0, world=1)
    buffers, step = Buffers(pinned=False), 0
    while True:
        for share in samples.share(step):
            moments = buffers.empty((BATCH, *MOMENTS), torch.float16)
            text = buffers.empty((BATCH, *TEXT), torch.float16)
            samples.copy(share.places, moments.numpy(), text.numpy())
            yield moments, text
            del moments, text  # so that the next batch may have their memory
        step += 1


def darkroom_drawing(folder: Path, workers: int) -> Batches:
    """Read as the trainer does: latents, noise, timesteps and text, by threads ahead of time."""
    storage = open_storage(str(folder))
    dataset = read_dataset(storage)
    assert dataset is not None
    drawing = Drawing(seed=0, timesteps=1000, scaling_factor=0.18215, caption_dropout=0.1)
    yield from Reader(dataset, storage, drawing, config(data=DataConfig(workers=workers)), 0, 1).steps(0, 10**9)


def config(**settings: Any) -> TrainConfig:
    """Return the defaults for one batch at a time."""
    return TrainConfig(global_batch=BATCH, micro_batch=BATCH, **settings)


def webdataset(folder: Path, workers: int) -> Batches:
    """Read the same tars with webdataset's own pipeline; only the arrays are decoded."""
    import webdataset as wds

    tars = sorted(map(str, folder.glob("shards/*/*.tar")))
    names = ("moments.npy", "text.npy")
    pipeline = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode(only=["npy", *names])
    batches = pipeline.to_tuple(*names).batched(BATCH, partial=False).repeat()
    for moments, text in wds.WebLoader(batches, batch_size=None, num_workers=workers):
        yield torch.as_tensor(moments), torch.as_tensor(text)


def streaming(folder: Path, workers: int) -> Batches:
    """Read a copy in mosaicml-streaming's format with its dataset and PyTorch's loader."""
    import_streaming()
    from streaming import MDSWriter, StreamingDataset

    copy = folder / "mds"
    if not copy.exists():
        columns = {"moments": "ndarray:float16:8,64,64", "text": "ndarray:float16:77,768"}
        with MDSWriter(out=str(copy), columns=columns, size_limit=97 << 20) as writer:
            rng = np.random.default_rng(0)
            for number in range(samples_in(folder)):
                sample = random_sample(rng, number)
                writer.write({"moments": sample.moments, "text": sample.text})
    dataset = StreamingDataset(local=str(copy), shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def samples_in(folder: Path) -> int:
    """Return how many samples the dataset has."""
    dataset = read_dataset(open_storage(str(folder)))
    return dataset.images if dataset is not None else 0


def import_streaming() -> None:
    """Import mosaicml-streaming without torchvision, of which its package needs the name of one class."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.VisionDataset, module.to_tensor = object, None
        sys.modules.setdefault(name, module)
    importlib.import_module("streaming")


CONTESTANTS: dict[str, Callable[[Path], Batches]] = {
    "the limit: a bare loop of copies": bare,
    "darkroom": darkroom,
    "webdataset, 0 workers": lambda folder: webdataset(folder, 0),
    "webdataset, 2 workers": lambda folder: webdataset(folder, 2),
    "streaming, 0 workers": lambda folder: streaming(folder, 0),
    "streaming, 2 workers": lambda folder: streaming(folder, 2),
    "darkroom with noise drawn, 1 thread": lambda folder: darkroom_drawing(folder, 1),
    "darkroom with noise drawn, 2 threads": lambda folder: darkroom_drawing(folder, 2),
}
LIMIT, OURS = list(CONTESTANTS)[:2]


def compete(name: str, folder: Path) -> None:
    """Read as many batches as each line of standard input says, and tell the seconds by clock and by processor."""
    torch.set_num_threads(1)
    batches = CONTESTANTS[name](folder)
    for line in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            next(batches)
        sys.stdout.write(f"={time.perf_counter() - began} {time.process_time() - worked}\n")
        sys.stdout.flush()


class Contestant:
    """A process that reads when it is told to."""

    def __init__(self, name: str, folder: Path, python: str) -> None:
        command = [python, __file__, "--contestant", name, "--folder", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self, batches: int) -> tuple[float, float]:
        """Read some batches and return the seconds: by the clock, and of processor time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{batches}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("="):
                seconds, worked = map(float, line[1:].split())
                return seconds, worked
        raise RuntimeError(f"ended with code {self._process.wait()}")

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


Blocks = list[tuple[float, float]]


def measure(folder: Path, samples: int, rounds: int, streaming_python: str | None) -> dict[str, Blocks]:
    """Return each contestant's seconds per block, round by round."""
    running: dict[str, Contestant] = {}
    seconds: dict[str, Blocks] = {}
    try:
        for name in CONTESTANTS:
            if name.startswith("streaming") and streaming_python is None:
                print(f"{name}: left out, for no Python with mosaicml-streaming was named")
                continue
            python = str(streaming_python) if name.startswith("streaming") else sys.executable
            running[name] = Contestant(name, folder, python)
            try:
                running[name].read(-(-samples // BATCH))  # an epoch, so that the disk is warm and digests are checked
                seconds[name] = []
            except (RuntimeError, OSError) as error:
                print(f"{name}: left out, for it {error}")
        names = list(seconds)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seconds[name].append(running[name].read(BLOCK))
    finally:
        for contestant in running.values():
            contestant.end()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8192, help="samples in the dataset, 184 kB each")
    parser.add_argument("--rounds", type=int, default=21, help="blocks of batches that each contestant reads")
    parser.add_argument("--streaming-python", help="a Python that can import mosaicml-streaming")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        compete(arguments.contestant, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), arguments.samples)
        seconds = measure(Path(folder), arguments.samples, arguments.rounds, arguments.streaming_python)
    for name, blocks in seconds.items():
        rate = BATCH * BLOCK / statistics.median(clock for clock, _ in blocks)
        shares = f"{ratio(seconds[LIMIT], blocks, 0):6.3f} of the limit"
        if not name.endswith(("2 workers", "1 thread", "2 threads")):
            shares += f" ({ratio(seconds[LIMIT], blocks, 1):.3f} by processor time)"
        print(
            f"{name:38} {rate:9,.0f} samples/s  {shares:50} darkroom: {ratio(blocks, seconds[OURS], 0):6.2f} x as fast"
        )


def ratio(theirs: Blocks, ours: Blocks, kind: int) -> float:
    """Return how often as fast we are as they, by the median of the rounds."""
    return statistics.median(other[kind] / own[kind] for other, own in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main()
