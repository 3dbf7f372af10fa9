"""The command line that the agent and its ranks share: which run, which data, which settings, which node."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.command import read_settings, step_parser
from components.storage.base import Storage
from components.storage.lease import TRAINING, Claim, Lease
from components.storage.open import open_storage
from components.train.config import TrainConfig
from components.train.metrics.trackers import check_installed

# The flags of torchrun that this command accepts, too, and their help texts.
_TORCHRUN_FLAGS = {
    "--nnodes": "number of nodes",
    "--node-rank": "this node's number, from 0",
    "--nproc-per-node": "processes on this node: a number, auto, gpu or cpu",
    "--master-addr": "host of node 0, where the ranks meet",
    "--master-port": "port there",
}


@dataclass(frozen=True)
class Request:
    """What to train, where everything is stored, and how this process was started.

    Attributes:
        config: The training's settings.
        seed: Seed of the order of the data and of all noise.
        base_model: The model to start from.
        workdir: The folder of all runs, datasets and models.
        run: The run's folder.
        dataset: The dataset's folder.
        version: Digest of the version to train on; None for the newest when it begins.
        node_variables: The flags about this node among others, by the ``PET_*`` variables that they override.
        restarts: How often to start the ranks again after a crash.
        parent: Id of the process that this one must not outlive, if any.
    """

    config: TrainConfig
    seed: int
    base_model: str
    workdir: Storage
    run: Storage
    dataset: Storage
    version: str | None
    node_variables: Mapping[str, str]
    restarts: int
    parent: int | None


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m components.train``; ``doc`` is the beginning of ``--help``."""
    parser = step_parser("train", doc)
    parser.add_argument("--run", required=True, help="name of the run; its folder is runs/RUN below the workdir")
    parser.add_argument("--encoding-key", required=True, help="name of the dataset's folder below datasets/")
    parser.add_argument("--dataset", metavar="DIGEST", help="version of the dataset to train on (default: the newest)")
    parser.add_argument("--base-model", required=True, help="diffusers folder, workdir:KEY or hub id to start from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the data and of all noise")
    for flag, text in _TORCHRUN_FLAGS.items():
        parser.add_argument(flag, help=f"{text} (default: {_variable(flag)})")
    parser.add_argument(
        "--restarts", type=int, default=0, metavar="N", help="start the ranks again after a crash, N times at most"
    )
    parser.add_argument(
        "--parent-pid", type=int, metavar="PID", help="end at once when this process, which started this one, is gone"
    )
    parser.add_argument(
        "--lease", metavar="CLAIM", help="claim of the run that the launcher holds: write only while it does"
    )
    return parser


def parse(argv: Sequence[str] | None, doc: str | None = None) -> Request:
    """Read the command line.

    Raises:
        ConfigError: If a setting is wrong.
    """
    arguments = parser(doc).parse_args(argv)
    workdir = open_storage(arguments.workdir)
    config = read_settings(arguments, TrainConfig)
    check_installed(config.metrics.trackers)
    given = {_variable(flag): getattr(arguments, flag[2:].replace("-", "_")) for flag in _TORCHRUN_FLAGS}
    return Request(
        config=config,
        seed=arguments.seed,
        base_model=arguments.base_model,
        workdir=workdir,
        run=_run(workdir.child(f"runs/{arguments.run}"), arguments.lease),
        dataset=workdir.child(f"datasets/{arguments.encoding_key}"),
        version=arguments.dataset,
        node_variables={name: value for name, value in given.items() if value is not None},
        restarts=arguments.restarts,
        parent=arguments.parent_pid,
    )


def _run(run: Storage, claim: str | None) -> Storage:
    """Return the run's folder; what is written to it is written only while the launcher holds the run's lease."""
    return Lease(run, TRAINING, Claim.parse(claim)).guard(run) if claim is not None else run


def _variable(flag: str) -> str:
    return "PET_" + flag[2:].replace("-", "_").upper()
