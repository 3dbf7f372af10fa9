r"""Encode one group's images and captions into shards of latents and text embeddings.

    python -m components.latents --workdir work --source-id 0123456789abcdef --group g01 \
        --caption-set 0123456789abcdef/mine --base-model workdir:models/base/fedcba9876543210 --set resolution=512

The caption step must have run for the group. Samples that the dataset already has are not encoded again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.command import run_step, step_parser
from components.latents.config import LatentsConfig
from components.progress import Progress
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("latents", __doc__)
    parser.add_argument("--source-id", required=True, help="the source of the images, as ingest named it")
    parser.add_argument("--group", required=True, help="name of the partition group, such as g01")
    parser.add_argument("--caption-set", required=True, help="the folder below captions/, as for the caption step")
    parser.add_argument("--base-model", required=True, help="the model whose encoders are used")
    return run_step(parser, LatentsConfig, argv, _work)


def _work(
    config: LatentsConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.latents.encoding_key import encoding_key
    from components.latents.group import encode
    from components.model.locations import fetch

    key = encoding_key(fetch(arguments.base_model, workdir), config)
    names = (arguments.group, arguments.source_id, arguments.caption_set, key, arguments.base_model)
    result = encode(config, *names, workdir, progress)
    return {**result, "encoding_key": key}


if __name__ == "__main__":
    sys.exit(main())
