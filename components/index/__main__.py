r"""Join the encoded groups into one dataset and commit it: which samples are trained on, held out or removed.

    python -m components.index --workdir work --source-id 0123456789abcdef --caption-set 0123456789abcdef/mine \
        --encoding-key fedcba9876543210 --groups g0 g1 --set held_out=0.05

The latents step must have run for each group. If nothing changed, the dataset stays the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.command import run_step, step_parser
from components.index.config import IndexConfig
from components.progress import Progress
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("index", __doc__)
    parser.add_argument("--source-id", required=True, help="the source, as ingest named it")
    parser.add_argument("--caption-set", required=True, help="the folder below captions/, as for the latents step")
    parser.add_argument("--encoding-key", required=True, help="the dataset's folder, as the latents step named it")
    parser.add_argument("--groups", required=True, nargs="+", help="all partition groups of the source")
    return run_step(parser, IndexConfig, argv, _work)


def _work(
    config: IndexConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.index.build import index

    names = (arguments.source_id, arguments.groups, arguments.caption_set, arguments.encoding_key)
    return index(config, *names, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
