r"""Give every image of one partition group captions: from files beside it, folder names, label files or models.

    python -m components.caption --workdir work --source-id 0123456789abcdef --group g01 \
        --caption-set 0123456789abcdef/mine

``--source-id`` is what ingest printed; ``--caption-set`` is the folder below ``captions/`` that is written: the source
and a name. Started again, it captions only images that are new, or whose captions depend on something that has changed.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from components.caption.config import CaptionConfig
from components.command import run_step, step_parser
from components.image.decoding import ImageLimits
from components.progress import Progress
from components.settings import override
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the caption step and return the process's exit code."""
    parser = step_parser("caption", __doc__)
    parser.add_argument("--source-id", required=True, help="name of the source, as ingest printed it")
    parser.add_argument("--group", required=True, help="name of the partition group, such as g01")
    parser.add_argument("--caption-set", required=True, help="folder below captions/: SOURCE-ID/NAME")
    parser.add_argument("--limit", action="append", default=[], metavar="KEY=VALUE", help="override one image limit")
    return run_step(parser, CaptionConfig, argv, _work)


def _work(config: CaptionConfig, arguments: Namespace, workdir: Storage, progress: Progress) -> Mapping[str, Any]:
    from components.caption.group import caption

    limits = ImageLimits.parse(override({}, arguments.limit))
    return caption(config, limits, arguments.group, arguments.source_id, arguments.caption_set, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
