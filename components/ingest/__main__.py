"""Record the images of a folder: size, digest and caption of each, or why it cannot be used.

    python -m components.ingest --workdir work --set source=photos

Another run reads only files that are new or changed.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from components.command import run_step, step_parser
from components.ingest.config import IngestConfig
from components.progress import Progress
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ingest step and return the process's exit code."""
    return run_step(step_parser("ingest", __doc__), IngestConfig, argv, _work)


def _work(config: IngestConfig, _: Namespace, workdir: Storage, progress: Progress) -> Mapping[str, Any]:
    from components.ingest.union import ingest_sources

    return ingest_sources(config, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
