"""Write the 1,797 handwritten digits that come with Darkroom as ordinary PNG files with captions beside them.

    python -m components.ingest.digits photos

A run needs no such files: the source ``example:digits`` is the same images. Here they are to look at, and to put others
beside. They are called 0000-zero.png, 0000-zero.txt and so on. Existing files are kept, whatever they hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from components.errors import DarkroomError
from components.image.examples.digits import digit_files
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage


def write_digits(folder: Storage, progress: Progress) -> int:
    """Write the files that do not exist yet and return how many were written.

    Args:
        folder: Where to write.
        progress: Gets an event for the files written.
    """
    existing = {entry.key for entry in folder.list()}
    files = list(digit_files())
    written = 0
    for name, data in progress.track(files, "files written", len(files)):
        written += name not in existing and folder.create(name, data)
    return written


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
