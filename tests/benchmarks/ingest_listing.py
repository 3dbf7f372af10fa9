"""What ingest costs, the first time and again: seconds and memory per million images, and for two billion.

    python tests/benchmarks/ingest_listing.py [--files 100000] [--images 100000 1000000]

First real files in a temporary folder, then a simulated listing: names, sizes and digests like those of real images,
without files. The records go to a temporary folder on the same disk. Each measurement runs in a process of its own and
gives its CPU time and largest resident memory too, since on a busy machine wall time says little.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from components.image.records import Rejection
from components.image.sources import Source, SourceFile, open_source
from components.ingest.config import IngestConfig
from components.ingest.file_cache import FileRecord
from components.ingest.ingest import ingest
from components.ingest.listing import ListedFile
from components.progress import Progress
from components.storage.open import open_storage

FOLDER = 1000  # files
BILLIONS = 2 * 10**9

_RESULTS = ("groups", "read", "new", "changed")


class SimulatedSource(Source):
    """A listing of ``images`` images; every 500th has changed since the last time if ``changed``."""

    url = "simulated://images"

    def __init__(self, images: int, changed: bool) -> None:
        self._images = images
        self._changed = changed

    def list(self) -> Iterator[SourceFile]:
        """Yield the files, sorted by name."""
        for number in range(self._images):
            tag = "2" if self._changed and number % 500 == 0 else "1"
            yield SourceFile(f"{number // FOLDER:07d}/{number:010d}.jpg", 100_000 + number % 1000, tag)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        raise AssertionError("there is nothing to read")


def read_simulated(_: Source, __: IngestConfig, file: ListedFile) -> list[FileRecord | Rejection]:
    """Return what reading an image would give."""
    digest = hashlib.sha256((file.name + file.tag).encode()).hexdigest()
    return [FileRecord(file.name, file.name, file.tag, file.bytes, digest, 512, 512, "JPEG")]


def plan(images: int, workdir: str, *, changed: bool) -> dict[str, Any]:
    """Ingest a simulated listing."""
    config, quiet = IngestConfig(source="simulated"), Progress(io.StringIO())
    return ingest(config, open_storage(workdir), quiet, SimulatedSource(images, changed), read_simulated)


def list_files(folder: str) -> dict[str, Any]:
    """List a folder and count its files."""
    return {"files": sum(1 for _ in open_source(folder).list())}


def ingest_files(folder: str, workdir: str) -> dict[str, Any]:
    """Ingest a folder."""
    return ingest(IngestConfig(source=folder), open_storage(workdir), Progress(io.StringIO()))


ACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "list": list_files,
    "ingest": ingest_files,
    "plan": lambda images, workdir: plan(int(images), workdir, changed=False),
    "news": lambda images, workdir: plan(int(images), workdir, changed=True),
}


class Cost(NamedTuple):
    """Wall seconds, CPU seconds and largest memory in MiB of an action, and its result."""

    seconds: float
    processor: float
    mib: float
    result: dict[str, Any]

    def __str__(self) -> str:
        """Return it as one line."""
        counts = "  ".join(f"{name} {self.result[name]:,}" for name in _RESULTS if name in self.result)
        return f"{self.seconds:7.1f} s (processor {self.processor:6.1f} s) {self.mib:5.0f} MiB   {counts}"


def measure(*act: str) -> Cost:
    """Run an action in a process of its own."""
    command = [sys.executable, __file__, "--act", *act]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return Cost(**json.loads(output))


def act(name: str, *arguments: str) -> None:
    """Run an action for `measure`, and print what it cost."""
    began = time.perf_counter()
    result = ACTS[name](*arguments)
    seconds = time.perf_counter() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "processor": time.process_time(), "mib": mib, "result": result}))


def make_files(folder: Path, files: int) -> None:
    """Write tiny images, no two with the same bytes, none compressed."""
    from PIL import Image

    for number in range(files):
        path = folder / f"{number // FOLDER:05d}"
        path.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.frombytes("L", (16, 16), hashlib.sha256(b"%d" % number).digest() * 8).save(file, "BMP")
        (path / f"{number:08d}.bmp").write_bytes(file.getvalue())


def real_files(files: int, temporary: Path) -> None:
    """Measure with real files."""
    make_files(temporary / "images", files)
    workdir = str(temporary / "work")
    for what, arguments in {
        "listed": ("list", str(temporary / "images")),
        "ingested for the first time": ("ingest", str(temporary / "images"), workdir),
        "ingested again, unchanged": ("ingest", str(temporary / "images"), workdir),
    }.items():
        print(f"{files:>11,} files {what:30} {measure(*arguments)}", flush=True)


def simulated(images: int, temporary: Path) -> Cost:
    """Measure with a simulated listing; return the cost of the first run."""
    workdir = temporary / f"simulated-{images}"
    runs = []
    for what, name in (
        ("planned for the first time", "plan"),
        ("planned again, unchanged", "plan"),
        ("planned with 0.2 % changed", "news"),
    ):
        runs.append(measure(name, str(images), str(workdir)))
        print(f"{images:>11,} images {what:29} {runs[-1]}", flush=True)
    written = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    print(
        f"{images:>11,} images: records of {written / images:.0f} bytes each, in groups of at most {largest(workdir):,}"
    )
    return runs[0]


def largest(workdir: Path) -> int:
    """Return how many images the largest group has."""
    return max(path.read_bytes().count(b"\n") for path in workdir.rglob("group-*.jsonl"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="real files")
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000], help="simulated images")
    parser.add_argument("--act", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.act:
        act(*arguments.act)
        return
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        real_files(arguments.files, Path(folder))
        costs = {images: simulated(images, Path(folder)) for images in arguments.images}
    few, many = costs[min(costs)], costs[max(costs)]
    hours = BILLIONS * many.processor / max(costs) / 3600
    print(
        f"\nFrom {min(costs):,} to {max(costs):,} images the processor's time grows "
        f"{many.processor / few.processor:.1f}-fold, memory {many.mib / few.mib:.2f}-fold.\n"
        f"{BILLIONS:,} images at this rate: {hours:.0f} hours of one processor."
    )


if __name__ == "__main__":
    main()
