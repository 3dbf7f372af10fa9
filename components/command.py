"""What every step shares: how it declares itself to the pipeline, and its command line.

A step's declaration stands in ``components/<step>/declaration.py``; whoever needs a list of steps asks `load_steps`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from components.errors import EXIT_DONE, DarkroomError
from components.progress import Progress
from components.settings import Settings, override, read_values
from components.storage.base import Storage
from components.storage.open import open_storage

S = TypeVar("S", bound=Settings)
T = TypeVar("T")
Result = Mapping[str, Any]
Work = Callable[[S, argparse.Namespace, Storage, Progress], Mapping[str, Any]]


class StepRun(Protocol):
    """One run of a step inside the pipeline: what the pipeline offers it."""

    @property
    def settings(self) -> Settings:
        """Those of the whole run; a step takes its own sections with `setting`."""

    @property
    def run(self) -> str:
        """Name of the run, its folder below ``runs/``."""

    @property
    def workdir(self) -> Storage:
        """Holds everything."""

    @property
    def progress(self) -> Progress:
        """Receives what happens."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """What earlier steps gave, such as ``base_model``, by name."""

    @property
    def group(self) -> str:
        """The partition group to work on, for a step that works group by group."""

    @property
    def source_id(self) -> str:
        """The name under which the workdir keeps what ingest listed.

        Raises:
            DataError: If the source is not there.
        """

    @property
    def caption_set(self) -> str:
        """The name under which the workdir keeps the source's captions as the run's settings make them.

        Raises:
            DataError: If the source is not there.
        """

    def encoding_key(self, base: Path) -> str:
        """Return the name of the encoding that a base model's folder gives with the run's settings."""


class Problem(NamedTuple):
    """What would end a run after hours, found before it begins.

    Attributes:
        setting: The setting that it is about, by its dotted name.
        text: What is wrong, and what to do.
        only_here: Whether it may be otherwise on another machine, such as a folder that is not here.
    """

    setting: str
    text: str
    only_here: bool = False


def _nothing(_result: Result, _events: Mapping[str, Result]) -> str:
    return ""


def _no_gpu(_settings: Settings) -> bool:
    return False


def _no_problems(_run: StepRun) -> Iterator[Problem]:
    return iter(())


def _no_metrics(_result: Result) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Step:
    """What the pipeline knows of a step: everything that is not the step's own work is read from here.

    Attributes:
        name: Its folder's name, and its name in the DAG.
        run: Does its work and returns a small JSON object; imports what is heavy when it is called. None if the work
            is the pipeline's own.
        summary: Says in a few words what came out: takes the result, and the newest event of each kind by its name.
        metrics: Returns the numbers of a result that a dashboard shows.
        loads_models: Whether it needs the image with torch, and a pod that is large enough for models.
        uses_gpu: Tells for the settings of a run whether it computes on a GPU.
        per_group: Whether it works on one partition group at a time, side by side with others.
        check: Yields what is wrong with the settings of a run, before anything is done; reads small files only.
        check_images: Yields what is wrong with the images for these settings, once they are listed.
        lists_images: Whether it is this step that lists them.
        is_launched: Whether the pipeline's launcher starts the work, in the step's pod or on nodes of its own.
    """

    name: str
    run: Callable[[StepRun], Result] | None = None
    summary: Callable[[Result, Mapping[str, Result]], str] = _nothing
    metrics: Callable[[Result], Mapping[str, float]] = _no_metrics
    loads_models: bool = False
    uses_gpu: Callable[[Settings], bool] = _no_gpu
    per_group: bool = False
    check: Callable[[StepRun], Iterator[Problem]] = _no_problems
    check_images: Callable[[StepRun], Iterator[Problem]] = _no_problems
    lists_images: bool = False
    is_launched: bool = False


def load_step(name: str) -> Step:
    """Return a step's declaration.

    Raises:
        ModuleNotFoundError: If there is no such step.
    """
    step: Step = importlib.import_module(f"components.{name}.declaration").STEP
    assert step.name == name, f"components/{name}/declaration.py declares {step.name}"
    return step


def load_steps() -> dict[str, Step]:
    """Return the declarations of all steps by their names, in alphabetical order."""
    package = importlib.import_module("components")
    folders = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    names = [name for name in folders if importlib.util.find_spec(f"components.{name}.declaration") is not None]
    return {name: load_step(name) for name in names}


def setting(settings: Settings, path: str, kind: type[T]) -> T:
    """Return one value or section of a run's settings, such as ``index.held_out``.

    Args:
        settings: Those of the whole run.
        path: Names from the outermost section inwards, with dots between them.
        kind: The type that it must have.
    """
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, kind), f"{path} is {type(value).__name__}, not {kind.__name__}"
    return value


def step_parser(step: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m components.<step>``.

    Args:
        step: Name of the step.
        doc: The docstring of its ``__main__`` module, shown by ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m components.{step}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="local folder or s3://bucket/prefix that holds everything")
    parser.add_argument("--config", type=Path, help="YAML or JSON file with this step's settings")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="change settings, one or several"
    )
    return parser


def read_settings(arguments: argparse.Namespace, settings: type[S]) -> S:
    """Return the settings that ``--config`` and ``--set`` give.

    Raises:
        ConfigError: If they are wrong.
    """
    values = read_values(arguments.config) if arguments.config else {}
    return settings.parse(override(values, [text for texts in arguments.set for text in texts]))


def run_step(parser: argparse.ArgumentParser, settings: type[S], argv: Sequence[str] | None, work: Work[S]) -> int:
    """Run a step and report its result; return the exit code.

    Args:
        parser: Parser of the command line.
        settings: Class of the step's settings.
        argv: The arguments; None for those of the process.
        work: What the step does; returns the fields of the event ``done``.
    """
    arguments = parser.parse_args(argv)
    progress = Progress()
    try:
        config = read_settings(arguments, settings)
        result = work(config, arguments, open_storage(arguments.workdir), progress)
    except DarkroomError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it, not a log collector
        return error.exit_code
    progress.event("done", **result)
    return EXIT_DONE
