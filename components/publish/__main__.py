r"""Publish the weights that a run's evaluation measured, as a folder that plain diffusers loads.

    python -m components.publish --workdir workdir --name digits --run first \
        --base-model workdir:models/base/fedcba9876543210 --set license=apache-2.0

The evaluate step must have run. Starting it again changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.command import run_step, step_parser
from components.progress import Progress
from components.publish.config import PublishConfig
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("publish", __doc__)
    parser.add_argument("--name", required=True, help="the model that gets a new version")
    parser.add_argument("--run", required=True, help="the run whose evaluated weights are published")
    parser.add_argument("--base-model", required=True, help="the model whose UNet was trained")
    return run_step(parser, PublishConfig, argv, _work)


def _work(
    config: PublishConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.publish.publishing import publish

    return publish(config, arguments.name, arguments.run, arguments.base_model, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
