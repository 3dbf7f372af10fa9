"""What would end a run after hours, found before its first costly second, all of it at once.

Each step checks what it needs (`components.command.Step.check`); here is what concerns the machine.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from components.command import Problem, StepRun, load_steps
from components.errors import ConfigError
from components.html.formatting import plural
from components.image.records import read_manifest
from components.image.union import mean_repeats
from components.model.devices import Gpu, gpus
from components.settings import flatten
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.cost.plan import Assumptions, Plan
from pipeline.cost.prices import read_prices
from pipeline.cost.stored_plan import plan_run, store_plan

# Who looks: the machine that the steps run on, a pod of the cluster that they run on, or a machine that only submits.
Where = Literal["here", "pod", "client"]

# More processes than that on one core spend their time waiting for each other.
_MOST_RANKS_PER_CORE = 4
_GB = 1e9


def check_settings(run: StepRun, settings: RunConfig, where: Where) -> None:
    """Check a run's settings against models, packages and this machine.

    Args:
        run: The run, with its workdir.
        settings: Its settings.
        where: Who looks.

    Raises:
        ConfigError: With all problems that were found.
    """
    problems = _certain([problem for step in load_steps().values() for problem in step.check(run)], where)
    if where == "here" and settings.launch.where == "local":
        problems += machine_problems(settings, gpus(), len(os.sched_getaffinity(0)))
    _raise(problems)


def check_images(run: StepRun, settings: RunConfig) -> str | None:
    """Check a run against its images, once they are listed, and keep its plan.

    Returns:
        What looks like a mistake but is none; None if nothing does.

    Raises:
        ConfigError: With all problems that were found.
    """
    manifest = read_manifest(run.workdir, run.source_id)
    images, repeats = manifest.images, mean_repeats(manifest.members)
    store_plan(settings, run.workdir, images)
    problems = _certain([problem for step in load_steps().values() for problem in step.check_images(run)], "pod")
    plan = None
    try:
        plan = plan_run(settings, read_prices(settings.placement.prices), None, images, Assumptions(), repeats)
    except ConfigError as error:
        if settings.train.epochs is not None and "train.epochs" in str(error):
            problems.append(Problem("train.epochs", str(error).removeprefix("train.epochs ")))
    if plan is not None:
        problems += disk_problems(plan, run.workdir)
    _raise(problems)
    return "; ".join(plan.warnings) if plan is not None and plan.warnings else None


def _certain(problems: Sequence[Problem], where: Where) -> list[Problem]:
    """Return the problems that are there wherever the steps run.

    The light steps' image has no packages that load models, and its pods may reach less than those of other steps: a
    model that they do not find may be there all the same.
    """
    loads_models = importlib.util.find_spec("transformers") is not None
    judges_models = where == "here" or (where == "pod" and loads_models)
    return [problem for problem in problems if judges_models or not problem.only_here]


def machine_problems(settings: RunConfig, devices: tuple[Gpu, ...], cores: int) -> Iterator[Problem]:
    """Yield what the settings ask of a machine that it does not have (pure).

    Args:
        settings: The run.
        devices: Its GPUs.
        cores: Its processors.
    """
    ranks = settings.train.ranks
    if devices and ranks > len(devices):
        yield Problem("train.ranks", f"{ranks} processes for {plural(len(devices), 'GPU')} here; set {len(devices)}")
    elif not devices and ranks > _MOST_RANKS_PER_CORE * cores:
        yield Problem("train.ranks", f"{ranks} processes for {plural(cores, 'core')} here, and no GPU; set {cores}")
    if not devices:
        for name, value in flatten(settings.model_dump(mode="json")).items():
            if name.endswith(".device") and value == "cuda":
                yield Problem(name, "it is cuda, and this machine has no usable GPU; set auto or cpu")


def disk_problems(plan: Plan, workdir: Storage) -> Iterator[Problem]:
    """Yield whether a local workdir lacks room for the dataset and the checkpoints."""
    folder = workdir.local_path()
    if folder is None:
        return
    # While one is written, the one that it replaces is still there.
    checkpoints = (plan.checkpoint_bytes or 0) * (plan.checkpoints_kept + 1)
    needed, free = checkpoints + (plan.dataset_bytes or 0), shutil.disk_usage(_existing(folder)).free
    if needed > free:
        yield Problem(
            "train.checkpoint.keep",
            f"{plan.checkpoints_kept + 1} checkpoints and the dataset take {needed / _GB:.1f} GB, and {workdir.url} "
            f"has {free / _GB:.1f} GB free; keep fewer, free some, or give another --workdir",
        )


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def _raise(problems: Iterable[Problem]) -> None:
    lines = [f"{problem.setting}: {problem.text}" for problem in problems]
    if len(lines) == 1:
        raise ConfigError(lines[0])
    if lines:
        raise ConfigError("\n".join([f"{len(lines)} problems:", *(f"- {line}" for line in lines)]))
