"""Provide the base model of a run; if the settings name none, train an autoencoder and build a model around it.

    python -m components.autoencoder --workdir work --source-id 0123456789abcdef --seed 1 --set base=some/folder

Without ``base`` the autoencoder learns from the source's own images, except those held out. ``--source-id`` is the
``source_id`` that ingest printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.autoencoder.config import ModelConfig
from components.command import run_step, step_parser
from components.progress import Progress
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("autoencoder", __doc__)
    parser.add_argument("--source-id", required=True, help="the source to learn from, as ingest named it")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and noise")
    parser.add_argument("--held-out", type=float, default=0.0, help="share of the images that are never trained on")
    return run_step(parser, ModelConfig, argv, _work)


def _work(
    config: ModelConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.autoencoder.base_model import ensure_base

    return ensure_base(config, arguments.seed, arguments.source_id, arguments.held_out, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
