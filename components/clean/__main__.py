r"""Reject near duplicates and images that do not pass the filters, and write the data report.

    python -m components.clean --workdir work --source-id 0123456789abcdef --caption-set 0123456789abcdef/mine \
        --groups g0 g1 --set max_distance=4 --filter min_sharpness=30

The caption step must have run for each group. If nothing changed since the last time, nothing is done.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.clean.config import CleanConfig
from components.command import run_step, step_parser
from components.image.buckets import Bucket, Buckets
from components.image.filters import FilterConfig
from components.progress import Progress
from components.settings import override
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("clean", __doc__)
    parser.add_argument("--source-id", required=True, help="the source, as ingest named it")
    parser.add_argument("--caption-set", required=True, help="the folder below captions/, as for the caption step")
    parser.add_argument("--groups", required=True, nargs="+", help="all partition groups of the source")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE", help="override one threshold of the filters"
    )
    parser.add_argument(
        "--bucket", action="append", default=[], metavar="WxH", type=_bucket, help="a shape that images are cut to"
    )
    parser.add_argument("--tokens", type=int, help="tokens of a caption that the text encoder will read, such as 75")
    return run_step(parser, CleanConfig, argv, _work)


def _bucket(text: str) -> Bucket:
    """Return height and width from a text such as 512x768, which begins with the width."""
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected width x height in pixels, such as 512x768")
    width, height = text.split("x")
    return int(height), int(width)


def _work(
    config: CleanConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.clean.cleaning import clean

    filters = FilterConfig.parse(override({}, arguments.filter))
    where = (arguments.source_id, arguments.groups, arguments.caption_set, workdir)
    buckets = Buckets(arguments.bucket) if arguments.bucket else None
    return clean(config, filters, *where, progress, buckets, arguments.tokens)


if __name__ == "__main__":
    sys.exit(main())
