"""What it costs to list, to plan and to look again: seconds and memory per million images, and for two billion.

    python tests/benchmarks/ingest_listing.py [--files 100000] [--images 100000 1000000]

First real files in a temporary folder, then a listing that is made up: names, sizes and digests as of real images, and
nothing behind them. What is written goes to a temporary folder on the same disk. Each measurement has a process of its
own, whose processor time and largest resident memory are told: on a busy machine the clock says little.
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


class MadeUp(Source):
    """A listing of so many images; every 500th came anew since the last time where ``changed`` says so."""

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


def made_up(_: Source, __: IngestConfig, file: ListedFile) -> list[FileRecord | Rejection]:
    """Return what reading an image would tell."""
    digest = hashlib.sha256((file.name + file.tag).encode()).hexdigest()
    return [FileRecord(file.name, file.name, file.tag, file.bytes, digest, 512, 512, "JPEG")]


def plan(images: int, workdir: str, *, changed: bool) -> dict[str, Any]:
    """Plan a listing that is made up."""
    config, quiet = IngestConfig(source="simulated"), Progress(io.StringIO())
    return ingest(config, open_storage(workdir), quiet, MadeUp(images, changed), made_up)


def list_files(folder: str) -> dict[str, Any]:
    """List a folder, and add it up as ingest does to see whether anything changed."""
    return {"files": sum(1 for _ in open_source(folder).list())}


def take_files(folder: str, workdir: str) -> dict[str, Any]:
    """Ingest a folder."""
    return ingest(IngestConfig(source=folder), open_storage(workdir), Progress(io.StringIO()))


ACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "list": list_files,
    "take": take_files,
    "plan": lambda images, workdir: plan(int(images), workdir, changed=False),
    "news": lambda images, workdir: plan(int(images), workdir, changed=True),
}


class Taken(NamedTuple):
    """What something took: seconds by the clock and of processor, largest memory in MiB; and what it returned."""

    seconds: float
    processor: float
    mib: float
    result: dict[str, Any]

    def __str__(self) -> str:
        """Return it in a few words."""
        found = "  ".join(f"{name} {self.result[name]:,}" for name in _RESULTS if name in self.result)
        return f"{self.seconds:7.1f} s (processor {self.processor:6.1f} s) {self.mib:5.0f} MiB   {found}"


def measure(*act: str) -> Taken:
    """Do something in a process of its own."""
    command = [sys.executable, __file__, "--act", *act]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return Taken(**json.loads(told))


def act(name: str, *arguments: str) -> None:
    """Do what `measure` asks for, and print what it took."""
    began = time.perf_counter()
    result = ACTS[name](*arguments)
    seconds = time.perf_counter() - began
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "processor": time.process_time(), "mib": mib, "result": result}))


def make_files(folder: Path, files: int) -> None:
    """Make so many tiny images, each of its own bytes, none compressed."""
    from PIL import Image

    for number in range(files):
        path = folder / f"{number // FOLDER:05d}"
        path.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        Image.frombytes("L", (16, 16), hashlib.sha256(b"%d" % number).digest() * 8).save(picture, "BMP")
        (path / f"{number:08d}.bmp").write_bytes(picture.getvalue())


def real_files(files: int, temporary: Path) -> None:
    """Measure with real files."""
    make_files(temporary / "images", files)
    workdir = str(temporary / "work")
    for what, arguments in {
        "listed": ("list", str(temporary / "images")),
        "ingested for the first time": ("take", str(temporary / "images"), workdir),
        "ingested again, unchanged": ("take", str(temporary / "images"), workdir),
    }.items():
        print(f"{files:>11,} files {what:30} {measure(*arguments)}", flush=True)


def simulated(images: int, temporary: Path) -> Taken:
    """Measure with a listing that is made up; returns what the first time took."""
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
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000], help="images that are made up")
    parser.add_argument("--act", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.act:
        act(*arguments.act)
        return
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as folder:
        real_files(arguments.files, Path(folder))
        found = {images: simulated(images, Path(folder)) for images in arguments.images}
    few, many = found[min(found)], found[max(found)]
    hours = BILLIONS * many.processor / max(found) / 3600
    print(
        f"\nFrom {min(found):,} to {max(found):,} images the processor's time grows "
        f"{many.processor / few.processor:.1f}-fold, memory {many.mib / few.mib:.2f}-fold.\n"
        f"{BILLIONS:,} images at this rate: {hours:.0f} hours of one processor."
    )


if __name__ == "__main__":
    main()
