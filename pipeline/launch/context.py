"""What both launchers work with: the run's settings, the trainer's arguments, the storage, progress and clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from components.accounting.ledger import Pool
from components.dataset.versions import read_version
from components.progress import Progress
from components.storage.base import Storage
from components.storage.lease import Lease
from components.train.config import TrainConfig
from pipeline.config import RunConfig
from pipeline.launch.books.earlier_trainings import prepare_records
from pipeline.launch.policy import LaunchLimits


class TrainerArguments(NamedTuple):
    """The arguments of ``python -m components.train``.

    Attributes:
        run: The run's name.
        workdir: The storage that holds everything, as `components.storage.open.open_storage` takes it.
        base_model: The model to start from.
        encoding_key: Names the dataset's folder.
        dataset: The dataset's digest.
        seed: The run's seed.
        config: The training's settings.
    """

    run: str
    workdir: str
    base_model: str
    encoding_key: str
    dataset: str
    seed: int
    config: TrainConfig

    def flags(self) -> list[str]:
        """Return them as on a command line, without the settings: these are passed differently here and on a node."""
        flags = ["--workdir", self.workdir, "--run", self.run, "--encoding-key", self.encoding_key]
        return [*flags, "--dataset", self.dataset, "--base-model", self.base_model, "--seed", str(self.seed)]


@dataclass(frozen=True)
class LaunchContext:
    """One training to launch.

    Attributes:
        settings: The run's settings.
        workdir: Holds everything; the nodes of a cluster must reach it by the same name.
        base_model: The model to start from.
        encoding_key: Names the dataset's folder.
        dataset: The dataset's digest; if it is not the one of the last launch, the training starts anew.
        progress: Receives the events of the training and of the launcher.
        prices: $ per node and hour, by pool; launch.usd_per_hour takes precedence.
        clock: Seconds that never go backwards.
        wall_clock: Seconds since 1970.
        lease: What this launcher holds of the run: without it nothing is written; None if nothing else can launch it.
    """

    settings: RunConfig
    workdir: Storage
    base_model: str
    encoding_key: str
    dataset: str
    progress: Progress
    prices: Mapping[Pool, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    lease: Lease | None = None

    @cached_property
    def run(self) -> Storage:
        """The run's folder."""
        run = self.workdir.child(f"runs/{self.settings.run}")
        return run if self.lease is None else self.lease.guard(run)

    def prepare_records(self) -> None:
        """Make room for the records of this training, if the run has those of a training on another dataset."""
        kept = prepare_records(self.run, self.dataset, self.workdir.child("runs"), self.settings.run)
        if kept is not None:
            self.progress.event("dataset-changed", before=kept.dataset, now=self.dataset, kept_as=kept.run)

    @property
    def limits(self) -> LaunchLimits:
        """The settings that the policy follows."""
        return LaunchLimits(self.settings.launch, self.settings.placement, self.settings.train.limits)

    @cached_property
    def train(self) -> TrainConfig:
        """The training's settings, with a number of steps in place of epochs.

        Raises:
            DataError: If the dataset is needed for that and cannot be read.
            ConfigError: If the warm-up takes longer than the training.
        """
        train = self.settings.train
        if train.epochs is None:
            return train
        dataset = read_version(self.workdir.child(f"datasets/{self.encoding_key}"), self.dataset)
        return train.in_steps(dataset.epoch_samples)

    @property
    def arguments(self) -> TrainerArguments:
        """The trainer's arguments."""
        settings = self.settings
        data = (self.base_model, self.encoding_key, self.dataset)
        return TrainerArguments(settings.run, self.workdir.url, *data, settings.seed, self.train)
