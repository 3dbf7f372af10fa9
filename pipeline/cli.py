"""The ``darkroom`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from components.errors import EXIT_DONE, DarkroomError
from pipeline.config import recipes, resolve, to_yaml


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 78 wrong settings, 65 bad data, 75 stopped and saved."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
    except DarkroomError as error:
        Console(stderr=True, highlight=False).print(f"[red]error[/red]: {_plain(str(error))}", soft_wrap=True)
        return error.exit_code
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom", description="Train Stable Diffusion on a folder of images: one pipeline, here or on a cluster."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run the whole pipeline on this machine, or continue it")
    _request(run)
    run.add_argument("--workdir", default="workdir", help="folder that holds everything (default: %(default)s)")
    run.set_defaults(verb=_run)

    config = verbs.add_parser("config", help="print every setting of a run, as a recipe")
    _request(config)
    config.set_defaults(verb=_config)

    compile_ = verbs.add_parser("compile", help="write the pipeline as Kubeflow's IR YAML")
    compile_.add_argument("--recipe", default="demo", help="recipe that the pipeline starts unless told otherwise")
    compile_.add_argument("--output", type=Path, default=Path("darkroom.yaml"), help="file (default: %(default)s)")
    compile_.add_argument("--image", default="darkroom:latest", help="container image of the steps, best by digest")
    compile_.add_argument("--retries", type=int, default=5, help="how often a failed step is started again")
    compile_.set_defaults(verb=_compile)
    return parser


def _request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, help=f"one of {', '.join(recipes())}, or a YAML file")
    parser.add_argument("--source", default="", help="folder of images (default: what the recipe says)")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override settings"
    )


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.runs import run_here

    # The steps' own output is redirected while they run; what a person sees is not.
    console = Console(file=sys.stdout)
    report = run_here(arguments.recipe, arguments.workdir, arguments.source, _overrides(arguments), console)
    console.print(f"report           {report}", highlight=False, soft_wrap=True)
    return EXIT_DONE


def _config(arguments: argparse.Namespace) -> int:
    config = resolve(arguments.recipe, _overrides(arguments), arguments.source)
    sys.stdout.write(to_yaml(config))
    return EXIT_DONE


def _compile(arguments: argparse.Namespace) -> int:
    from pipeline.runs import compile_to

    compile_to(arguments.recipe, arguments.output, arguments.image, arguments.retries)
    return EXIT_DONE


def _overrides(arguments: argparse.Namespace) -> list[str]:
    return [text for group in arguments.set for text in group]


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
