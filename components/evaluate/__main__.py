r"""Draw fixed prompts with a run's newest weights, measure the images, and compare with the champion.

    python -m components.evaluate --workdir workdir --name digits --run first --source-id 0123456789abcdef \
        --encoding-key 89abcdef01234567 --base-model workdir:models/base/fedcba9876543210 \
        --set 'prompts=["a handwritten digit one", "a handwritten digit two"]'

The options take what ingest and autoencoder printed. Starting it again measures only what is new.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.command import run_step, step_parser
from components.errors import NotFound
from components.evaluate.config import EvaluateConfig
from components.progress import Progress
from components.storage.base import Storage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step and return its exit code."""
    parser = step_parser("evaluate", __doc__)
    parser.add_argument("--name", required=True, help="name of the model; its champion is what a new version must beat")
    parser.add_argument("--run", required=True, help="the run whose newest checkpoint is evaluated")
    parser.add_argument("--source-id", required=True, help="the source, as ingest printed it")
    parser.add_argument("--encoding-key", required=True, help="the dataset, its folder below datasets/")
    parser.add_argument(
        "--dataset", metavar="DIGEST", help="the version that was trained on (default: as recorded by the run)"
    )
    parser.add_argument("--base-model", required=True, help="the model whose UNet was trained")
    return run_step(parser, EvaluateConfig, argv, _work)


def _work(
    config: EvaluateConfig, arguments: argparse.Namespace, workdir: Storage, progress: Progress
) -> Mapping[str, Any]:
    from components.evaluate.evaluation import evaluate

    digest = arguments.dataset or _trained_on(workdir, arguments.run, arguments.encoding_key)
    return evaluate(
        config,
        arguments.name,
        arguments.source_id,
        arguments.encoding_key,
        digest,
        arguments.base_model,
        arguments.run,
        workdir,
        progress,
    )


def _trained_on(workdir: Storage, run: str, encoding_key: str) -> str:
    """Return the version that the pipeline's launcher recorded; without a record, the only dataset that there is."""
    from components.dataset.versions import read_only_dataset

    try:
        return str(workdir.read_json(f"runs/{run}/training.json")["dataset"])
    except NotFound:
        return read_only_dataset(workdir.child(f"datasets/{encoding_key}")).digest


if __name__ == "__main__":
    sys.exit(main())
