"""The command line that the agent and its ranks share: which run, which data, which settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from components.command import step_parser
from components.settings import override, read_values
from components.storage import Storage, open_storage
from components.train.config import TrainConfig


@dataclass(frozen=True)
class Request:
    """What is to be trained, and where everything lies."""

    config: TrainConfig
    seed: int
    base_model: str
    workdir: Storage
    run: Storage
    dataset: Storage


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m components.train``; ``doc`` is what ``--help`` says first."""
    parser = step_parser("train", doc)
    parser.add_argument("--run", required=True, help="name of the run; its folder is runs/RUN below the workdir")
    parser.add_argument("--encoding-key", required=True, help="name of the dataset's folder below datasets/")
    parser.add_argument("--base-model", required=True, help="diffusers folder, workdir:KEY or hub id to start from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the data and of all noise")
    return parser


def parse(argv: Sequence[str] | None, doc: str | None = None) -> Request:
    """Read the command line.

    Raises:
        ConfigError: Where a setting is wrong.
    """
    arguments = parser(doc).parse_args(argv)
    values = read_values(arguments.config) if arguments.config else {}
    workdir = open_storage(arguments.workdir)
    return Request(
        config=TrainConfig.parse(override(values, arguments.set)),
        seed=arguments.seed,
        base_model=arguments.base_model,
        workdir=workdir,
        run=workdir.child(f"runs/{arguments.run}"),
        dataset=workdir.child(f"datasets/{arguments.encoding_key}"),
    )
