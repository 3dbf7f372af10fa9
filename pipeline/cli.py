"""The ``darkroom`` command."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from components.errors import EXIT_DONE, ConfigError, DarkroomError, Preempted
from components.html.formatting import printable
from pipeline.command_line import (
    Parser,
    add_json,
    add_verb,
    add_verbs,
    add_version,
    print_json,
    whole_number,
    wrapped,
)
from pipeline.config import place_settings, resolve, to_yaml
from pipeline.cost.documents import COST_KEYS, PLAN_KEYS
from pipeline.cost.plan import Assumptions
from pipeline.datasets import verbs as dataset_verbs
from pipeline.datasets.verify import add_verify
from pipeline.kubeflow import verbs as cluster_verbs
from pipeline.local import verbs as local_verbs
from pipeline.local.recent import DEFAULT_WORKDIR
from pipeline.recipe import recipes

_WORKDIR = "folder or s3://bucket/prefix for all data"
_EXAMPLES = (
    "darkroom init photos",
    "darkroom run --recipe photos.yaml",
    "darkroom plan --recipe sd15-full --images 100000",
    "darkroom run --help",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Returns:
        One of the codes of `components.errors`, which docs/cli.md lists.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a letter
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
    except KeyboardInterrupt:
        return _report(Preempted("stopped; the same command continues"))
    except DarkroomError as error:
        return _report(error)
    return code


def _report(error: DarkroomError) -> int:
    label = "" if isinstance(error, Preempted) else "error: "
    console = Console(stderr=True, highlight=False)
    text = f"{label}{printable(str(error))}"
    if console.is_terminal:  # elsewhere, a line is what a search finds
        text = wrapped(text)
    console.print(Text.assemble((label, "red"), text.removeprefix(label)), soft_wrap=True)
    return error.exit_code


def build_parser() -> Parser:
    """Return the parser of all verbs."""
    parser = Parser(
        prog="darkroom",
        description="Train Stable Diffusion on your images: one pipeline, on this machine or on a cluster.",
    )
    parser.set_examples(_EXAMPLES)
    add_version(parser)
    verbs = add_verbs(parser)
    _add_init(verbs)
    _add_run(verbs)
    _add_config(verbs)
    _add_compile(verbs)
    _add_plan(verbs)
    _add_cost(verbs)
    dataset_verbs.add_dataset(verbs)
    add_verify(verbs)
    cluster_verbs.add_cluster_verbs(verbs)
    local_verbs.add_verbs(verbs)
    local_verbs.prefer_here(verbs.choices["status"], local_verbs.status)
    local_verbs.prefer_here(verbs.choices["logs"], local_verbs.logs)
    return parser


def _add_recipe(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    default = "; without one, --source gets a recipe of its own, as init writes it" if optional else ""
    names = f"one of {', '.join(recipes())}, or a YAML file{default}"
    parser.add_argument("--recipe", required=not optional, default="", help=names)
    text = "folder of images (default: the recipe's); given several times: all of them, each image once in an epoch"
    parser.add_argument("--source", action="append", default=[], help=text)
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="change settings"
    )


def _add_init(verbs: Any) -> None:
    examples = (
        "darkroom init photos",
        "darkroom init photos s3://bucket/drawings -o mine.yaml",
        "darkroom init train.parquet --set ingest.rows.image=photo",
    )
    parser = add_verb(verbs, "init", "look at your images and this machine, and write a recipe", _init, examples)
    parser.add_argument("place", nargs="+", help="folder, s3://bucket/prefix or file with the images; one or several")
    _add_set(parser)
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: the place's name, as .yaml)")


def _add_run(verbs: Any) -> None:
    examples = (
        "darkroom run --source photos",
        "darkroom run --source photos --source drawings",
        "darkroom run --recipe demo",
        "darkroom run --recipe mine.yaml --source photos --workdir work",
        "darkroom run --recipe demo --set train.steps=800 train.ranks=4",
        "darkroom run --continue demo-1a2b3c4d --set train.steps=1200",
    )
    parser = add_verb(verbs, "run", "run the whole pipeline on this machine, or continue a run", _run, examples)
    _add_recipe(parser, optional=True)
    parser.add_argument("--workdir", default="", help=f"{_WORKDIR} (default: {DEFAULT_WORKDIR})")
    local_verbs.add_continue(parser)


def _add_config(verbs: Any) -> None:
    examples = ("darkroom config --recipe demo > mine.yaml", "darkroom config --recipe mine.yaml --set seed=1 --json")
    parser = add_verb(verbs, "config", "print all settings of a run, as a recipe", _config, examples)
    _add_recipe(parser)
    add_json(parser, run="name of the run", settings="all settings, by section")


def _add_compile(verbs: Any) -> None:
    examples = (
        "darkroom compile --recipe digits --output darkroom.yaml",
        "darkroom compile --file deploy.yaml",
        "darkroom compile --trainjob --recipe sd15-full --set placement.cloud=gke",
    )
    parser = add_verb(verbs, "compile", "write the pipeline as a YAML file for Kubeflow", _compile, examples)
    parser.add_argument("--recipe", default="demo", help="recipe with the resources of the steps (default: demo)")
    _add_set(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("darkroom.yaml"), help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--trainjob", action="store_true", help="print the TrainJob that a run submits, for each pool; write no file"
    )
    parser.add_argument("--file", type=Path, help="deploy.yaml of a release, instead of the options below")
    parser.add_argument("--image", default="darkroom:latest", help="container image of the light steps, best by digest")
    parser.add_argument("--gpu-image", default="", help="container image of steps that run models (default: --image)")
    parser.add_argument("--workdir", default="s3://bucket/darkroom", help=f"{_WORKDIR} (default: %(default)s)")
    parser.add_argument(
        "--retries", type=whole_number(0, 100), default=5, help="retries of a failed step (default: %(default)s)"
    )


def _add_plan(verbs: Any) -> None:
    examples = (
        "darkroom plan --recipe sd15-full --images 100000",
        "darkroom plan --recipe demo --workdir workdir --json",
        "darkroom plan --recipe sd15-full --assume reclaims_per_node_day=2",
    )
    parser = add_verb(verbs, "plan", "estimate the time, cost and storage of a run; starts nothing", _plan, examples)
    _add_recipe(parser)
    parser.add_argument(
        "--images", type=whole_number(0, 10**15), help="number of images, to estimate the size of the dataset"
    )
    parser.add_argument("--workdir", default="", help="workdir with earlier runs, to use their speed")
    parser.add_argument("--prices", help="YAML file with prices of machine types (default: the recipe's)")
    names = ", ".join(Assumptions.model_fields)
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE", help=f"change an assumption: {names}"
    )
    add_json(parser, **PLAN_KEYS)


def _add_cost(verbs: Any) -> None:
    examples = ("darkroom cost demo", "darkroom cost demo-1a2b --workdir s3://bucket/darkroom --json")
    parser = add_verb(verbs, "cost", "show what a run has cost, and how its time was used", _cost, examples)
    parser.add_argument(
        "run", nargs="?", default="", help="name of the run, or the beginning of it (default: the last one)"
    )
    parser.add_argument("--workdir", default="", help=f"{_WORKDIR} (default: the one that was used last)")
    add_json(parser, **COST_KEYS)


def _init(arguments: argparse.Namespace) -> int:
    from pipeline.local.init.verb import write_recipe

    write_recipe(arguments.place, arguments.output, Console(highlight=False), _overrides(arguments))
    return EXIT_DONE


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.local.init.verb import recipe_of_sources
    from pipeline.local.run import open_workdir, run_here

    if arguments.continued:
        if arguments.recipe:
            raise ConfigError("give --recipe for a run of its settings, or --continue for one that goes on, not both")
        return local_verbs.continue_run(arguments.continued, arguments.workdir, _overrides(arguments))
    console, workdir = Console(highlight=False), arguments.workdir or DEFAULT_WORKDIR
    recipe, places = arguments.recipe, arguments.source
    if not recipe:
        if not places:
            raise ConfigError(
                "nothing to run: give --source FOLDER with your images, or --recipe (one of "
                f"{', '.join(recipes())}, or a YAML file, such as `darkroom init FOLDER` writes)"
            )
        recipe = recipe_of_sources(places, open_workdir(workdir), console, _overrides(arguments))
        places = places if len(places) == 1 else []  # several are in the recipe, where somebody may set their repeats
    source, several = place_settings(places)
    run_here(recipe, workdir, source, [*several, *_overrides(arguments)], console)
    return EXIT_DONE


def _config(arguments: argparse.Namespace) -> int:
    source, several = place_settings(arguments.source)
    config = resolve(arguments.recipe, [*several, *_overrides(arguments)], source)
    if arguments.json:
        print_json({"run": config.run, "settings": config.model_dump(mode="json")})
    else:
        sys.stdout.write(to_yaml(config))
    return EXIT_DONE


def _plan(arguments: argparse.Namespace) -> int:
    from pipeline.cost.verbs import show_plan

    overrides = _overrides(arguments)
    if arguments.prices is not None:
        overrides.append(f"placement.prices={json.dumps(arguments.prices)}")
    source, several = place_settings(arguments.source)
    settings = resolve(arguments.recipe, [*several, *overrides], source)
    console = Console(highlight=False)
    show_plan(settings, arguments.workdir, arguments.images, arguments.assume, arguments.json, console)
    return EXIT_DONE


def _cost(arguments: argparse.Namespace) -> int:
    from pipeline.cost.verbs import show_cost
    from pipeline.local.runs import find

    run = find(arguments.run, arguments.workdir)
    show_cost(run.name, run.workdir.url, arguments.json, Console(highlight=False))
    return EXIT_DONE


def _compile(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.compile import compile_to, trainjobs
    from pipeline.kubeflow.release import Deployment, read_deployment

    if arguments.file is not None:
        deployment = read_deployment(arguments.file)
    else:
        options = {"image": arguments.image, "gpu_image": arguments.gpu_image, "retries": arguments.retries}
        deployment = Deployment.parse({**options, "recipe": arguments.recipe, "workdir": arguments.workdir})
    if arguments.trainjob:
        sys.stdout.write(trainjobs(deployment, arguments.recipe, _overrides(arguments)))
    else:
        compile_to(arguments.output, deployment, arguments.recipe, _overrides(arguments))
    return EXIT_DONE


def _overrides(arguments: argparse.Namespace) -> list[str]:
    return [text for group in arguments.set for text in group]


if __name__ == "__main__":
    sys.exit(main())
