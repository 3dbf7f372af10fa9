"""Images per second of the whole latents step beside the bare forward passes of the same encoders.

    python tests/benchmarks/latents.py [--images 256] [--rounds 3] [--known 10000]

The step reads JPEGs (448x336 pixels, as a camera's, smoothed), decodes, cuts, encodes, checks and writes shards; the
bare loop only runs autoencoder and text encoder over batches that lie ready in memory. Both use one thread of one
core; the step decodes in processes beside it. They take turns, and the middle ratio is printed, so that a busy machine
slows both alike. Then the second run: the time that the caption, latents and index steps take where all is known.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from components.autoencoder.scratch import build_scratch
from components.caption.config import CaptionConfig
from components.caption.group import caption
from components.image.decoding import ImageLimits
from components.image.records import read_manifest
from components.index.build import index
from components.index.config import IndexConfig
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.latents.config import DecodeConfig, LatentsConfig
from components.latents.encoders import Encoders
from components.latents.encoding_key import encoding_key
from components.latents.group import encode
from components.model.architecture import Architecture
from components.model.locations import reproducible
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage

SIZES = {
    "resolution": 256,
    "autoencoder": {"channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_groups": 8},
    "text": {"hidden": 256, "layers": 6, "heads": 4, "max_tokens": 77},
}
SET = "bench/mine"
QUIET = Progress(io.StringIO())


class Bench:
    """Pictures, models and settings."""

    def __init__(self, root: Path, config: LatentsConfig, sizes: dict[str, object]) -> None:
        self.images, self.base, self.root = root / "images", root / "base", root
        self.images.mkdir()
        self.config = config
        build_scratch(Architecture.parse(sizes), ["a picture of something"], seed=0).save_pretrained(self.base)
        self.key = encoding_key(self.base, config)

    def fill(self, count: int, size: tuple[int, int], kind: str) -> None:
        """Write pictures and captions."""
        rng = np.random.default_rng(0)
        for number in range(count):
            noise = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            picture = Image.fromarray(noise)
            if kind == "JPEG":
                picture = picture.filter(ImageFilter.GaussianBlur(2))
            picture.save(self.images / f"{number:06}.{kind.lower()}", quality=90)
            (self.images / f"{number:06}.txt").write_text(f"picture {number} of something")

    def prepare(self, name: str) -> tuple[Storage, str]:
        """Ingest and caption into a new workdir; returns it and the source's name."""
        workdir = open_storage(str(self.root / name))
        source = str(ingest(IngestConfig(source=str(self.images)), workdir, QUIET)["source_id"])
        self.caption(workdir, source)
        return workdir, source

    def caption(self, workdir: Storage, source: str) -> None:
        for group in groups(workdir, source):
            caption(CaptionConfig(), ImageLimits(min_side=1), group, source, SET, workdir, QUIET)

    def encode(self, workdir: Storage, source: str) -> int:
        """Run the step and return how many images it encoded."""
        where = str(self.base), workdir, QUIET
        done = (encode(self.config, group, source, SET, self.key, *where) for group in groups(workdir, source))
        return sum(int(result["encoded"]) for result in done)

    def bare(self, count: int) -> float:
        """Return the seconds that the forward passes of some images and captions take."""
        encoders = Encoders(self.base, self.config, [(self.config.resolution,) * 2])
        side, size = self.config.resolution, self.config.batch_size
        pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
        with reproducible(self.config.threads), torch.inference_mode():
            began = time.perf_counter()
            for first in range(0, count, size):
                encoders.moments(pixels[: min(size, count - first)]).wait()
            for first in range(0, count, self.config.text_batch_size):
                encoders.text.forward([f"picture {first + i} of something" for i in range(self.config.text_batch_size)])
            return time.perf_counter() - began


def groups(workdir: Storage, source: str) -> tuple[str, ...]:
    """Return the partition groups."""
    return read_manifest(workdir, source).groups


def throughput(images: int, rounds: int) -> None:
    """Print the step's rate beside the bare loop's."""
    decode = DecodeConfig(workers=1)
    config = LatentsConfig(resolution=256, batch_size=16, shard_samples=128, device="cpu", decode=decode)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), config, SIZES)
        bench.fill(images, (448, 336), "JPEG")
        pairs, busy = [], []
        for number in range(rounds):
            workdir, source = bench.prepare(f"work-{number}")
            began, busy_since = time.perf_counter(), time.thread_time()
            assert bench.encode(workdir, source) == images
            step, busy_step = time.perf_counter() - began, time.thread_time() - busy_since
            busy_since = time.thread_time()
            bare = bench.bare(images)
            pairs.append((step, bare))
            busy.append((time.thread_time() - busy_since) / busy_step)
            print(f"  round {number + 1}: step {images / step:.2f} images/s, bare {images / bare:.2f} images/s")
    step, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(bare / step for step, bare in pairs)
    print(f"latents step   {images / step:8.2f} images/s   ({images} JPEGs of 448x336, encoded at 256x256)")
    print(f"bare encoders  {images / bare:8.2f} images/s")
    print(f"throughput of the step: {ratio:.3f} x the bare encoders' (median of {rounds} rounds)")
    print(f"CPU time of the thread that encodes: {statistics.median(busy):.3f} of the step's is the bare encoders'")


def second_run(known: int) -> None:
    """Print how long the steps take where nothing is new."""
    tiny = {
        "resolution": 8,
        "autoencoder": {"channels": [4], "layers_per_block": 0, "norm_groups": 4},
        "text": {"hidden": 8, "layers": 1, "heads": 2, "max_tokens": 8, "vocabulary": 600},
        "unet": {"channels": [4], "cross_attention": [True], "norm_groups": 2, "attention_heads": 2},
    }
    config = LatentsConfig(resolution=8, batch_size=512, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), config, tiny)
        bench.fill(known, (8, 8), "PNG")
        workdir = open_storage(str(Path(folder) / "work"))
        limits = ImageLimits(min_side=1)
        source = str(ingest(IngestConfig(source=str(bench.images), limits=limits), workdir, QUIET)["source_id"])

        def caption_step() -> None:
            bench.caption(workdir, source)

        def latents_step() -> None:
            bench.encode(workdir, source)

        def index_step() -> None:
            index(IndexConfig(), source, groups(workdir, source), SET, bench.key, workdir, QUIET)

        steps = {"caption": caption_step, "latents": latents_step, "index": index_step}
        for step in steps.values():
            step()
        taken = {}
        for name, step in steps.items():
            began, busy_since = time.perf_counter(), time.process_time()
            step()
            taken[name] = time.perf_counter() - began, time.process_time() - busy_since
        told = ", ".join(f"{name} {busy:.2f} s" for name, (_, busy) in taken.items())
        wall, busy = map(sum, zip(*taken.values(), strict=True))
        print(f"second run over {known} known images: {told}; {busy:.2f} s of CPU time together, {wall:.2f} s in all")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="images that are encoded in each round; 0: none")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of step and bare loop")
    parser.add_argument("--known", type=int, default=10_000, help="images of the second run; 0: none")
    arguments = parser.parse_args()
    if arguments.images:
        throughput(arguments.images, arguments.rounds)
    if arguments.known:
        second_run(arguments.known)


if __name__ == "__main__":
    main()
