r"""Provide the base model of a run; if the settings name none, train an autoencoder and build a model around it.

    python -m components.autoencoder --workdir work --source-id 0123456789abcdef \
        --caption-set 0123456789abcdef/mine --seed 1 --set base=some/folder

Without ``base`` the autoencoder learns from the images that caption and clean have accepted, except those held out, and
the tokenizer from their captions. ``--source-id`` is the ``source_id`` that ingest printed.
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
    parser.add_argument("--caption-set", required=True, help="the folder below captions/, as for the caption step")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and noise")
    parser.add_argument("--held-out", type=float, default=0.0, help="share of the images that are never trained on")
    return run_step(parser, ModelConfig, argv, _work)


def _work(
    config: ModelConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.autoencoder.base_model import TrainingData, ensure_base

    # The pipeline names the settings of the captions; here the name that somebody gave them stands for these.
    data = TrainingData(arguments.source_id, arguments.caption_set, arguments.caption_set, arguments.held_out)
    return ensure_base(config, arguments.seed, data, workdir, progress)


if __name__ == "__main__":
    sys.exit(main())
