"""The command line that every step shares: where the workdir is, which settings hold, what an error exits with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from components.errors import EXIT_DONE, DarkroomError
from components.progress import Progress
from components.settings import Settings, override, read_values
from components.storage.base import Storage
from components.storage.open import open_storage

S = TypeVar("S", bound=Settings)
Work = Callable[[S, argparse.Namespace, Storage, Progress], Mapping[str, Any]]


def step_parser(step: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m components.<step>``; ``doc`` is the module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m components.{step}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="local folder or s3://bucket/prefix that holds everything")
    parser.add_argument("--config", type=Path, help="YAML or JSON file with this step's settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")
    return parser


def run_step(parser: argparse.ArgumentParser, settings: type[S], argv: Sequence[str] | None, work: Work[S]) -> int:
    """Parse, validate, work and tell the result; return the process's exit code."""
    arguments = parser.parse_args(argv)
    progress = Progress()
    try:
        values = read_values(arguments.config) if arguments.config else {}
        config = settings.parse(override(values, arguments.set))
        result = work(config, arguments, open_storage(arguments.workdir), progress)
    except DarkroomError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it, not a log collector
        return error.exit_code
    progress.event("done", **result)
    return EXIT_DONE
