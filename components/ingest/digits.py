"""Write scikit-learn's 1,797 handwritten digits as ordinary PNG files with captions beside them.

    python -m components.ingest.digits photos

The files are called 0000-zero.png, 0000-zero.txt and so on. Existing files are kept, whatever they hold.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.errors import DarkroomError
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32


def write_digits(folder: Storage, progress: Progress) -> int:
    """Write the files that do not exist yet and return how many were written.

    The bytes are the same on every machine, and so are the digits that are held out: pixels are resized with integer
    arithmetic and stored without compression, since the output of zlib differs between its versions.

    Args:
        folder: Where to write.
        progress: Gets an event for the digits written.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    existing = {entry.key for entry in folder.list()}
    written = 0
    pairs = list(zip(digits.images, digits.target, strict=True))
    for number, (pixels, label) in enumerate(progress.track(pairs, "digits written", len(pairs))):
        for name, data in _files(number, pixels, WORDS[label]):
            written += name not in existing and folder.create(name, data)
    return written


def _files(number: int, pixels: NDArray[np.float64], word: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of one digit's files; ``pixels`` is ``[8, 8]`` with values from 0 to 16."""
    gray = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
    file = io.BytesIO()
    gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG", compress_level=0)
    yield f"{number:04d}-{word}.png", file.getvalue()
    yield f"{number:04d}-{word}.txt", f"a handwritten digit {word}\n".encode()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the digits into a folder and return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m components.ingest.digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="where to write: a local folder or s3://bucket/prefix")
    folder = parser.parse_args(argv).folder
    progress = Progress()
    try:
        written = write_digits(open_storage(folder), progress)
    except DarkroomError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it, not a log collector
        return error.exit_code
    progress.event("done", folder=folder, written=written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
