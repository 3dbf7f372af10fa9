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
from pipeline.config import resolve, to_yaml
from pipeline.datasets import verbs as dataset_verbs
from pipeline.kubeflow import verbs as cluster_verbs
from pipeline.recipe import recipes

_ASSUMED = "what to take for granted, such as mfu=0.3 or reclaims_per_node_day=4 (plan.Assumptions has all)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Returns:
        0 done, 78 wrong settings, 65 bad data, 74 storage that cannot be read or written, 75 stopped with the state
        saved, 70 for what went wrong inside.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know every letter
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
    except KeyboardInterrupt:
        return _tell(Preempted("stopped; the same command continues"))
    except DarkroomError as error:
        return _tell(error)
    return code


def _tell(error: DarkroomError) -> int:
    label = Text() if isinstance(error, Preempted) else Text("error: ", "red")
    Console(stderr=True, highlight=False).print(label + printable(str(error)), soft_wrap=True)
    return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="darkroom", description="Train Stable Diffusion on a folder of images: one pipeline, here or on a cluster."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run the whole pipeline on this machine, or continue it")
    _request(run)
    run.add_argument(
        "--workdir", default="workdir", help="folder or s3://bucket/prefix that holds everything (default: %(default)s)"
    )
    run.set_defaults(verb=_run)

    config = verbs.add_parser("config", help="print every setting of a run, as a recipe")
    _request(config)
    config.set_defaults(verb=_config)

    _compiling(verbs)
    _money(verbs)
    dataset_verbs.add_verbs(
        verbs.add_parser("dataset", help="list, show and verify encoded datasets; delete what nobody needs")
    )
    cluster_verbs.add_verbs(verbs)
    return parser


def _compiling(verbs: Any) -> None:
    compile_ = verbs.add_parser("compile", help="write the pipeline as Kubeflow's IR YAML")
    compile_.add_argument("--recipe", default="demo", help="recipe whose machines the steps ask for (default: demo)")
    compile_.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override settings"
    )
    compile_.add_argument("--output", type=Path, default=Path("darkroom.yaml"), help="file (default: %(default)s)")
    compile_.add_argument("--file", type=Path, help="deploy.yaml of a release, instead of the following")
    compile_.add_argument("--image", default="darkroom:latest", help="image of the light steps, best by digest")
    compile_.add_argument("--gpu-image", default="", help="image of steps that run models (default: the same)")
    compile_.add_argument(
        "--workdir", default="s3://bucket/darkroom", help="place that holds everything (default: %(default)s)"
    )
    compile_.add_argument("--retries", type=int, default=5, help="how often a failed step is started again")
    compile_.set_defaults(verb=_compile)


def _money(verbs: Any) -> None:
    plan = verbs.add_parser("plan", help="tell what a run is going to take: hours, dollars, storage; starts nothing")
    _request(plan)
    plan.add_argument("--images", type=int, help="images in the dataset, for its size")
    plan.add_argument("--workdir", default="", help="place whose earlier runs tell how fast training is")
    plan.add_argument("--prices", help="YAML file with prices of machines (default: what the recipe says)")
    plan.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help=_ASSUMED)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(verb=_plan)

    cost = verbs.add_parser("cost", help="tell what a run has cost, and where its time went")
    cost.add_argument("run", help="name of the run, or as much of its beginning as is enough")
    cost.add_argument("--workdir", default="workdir", help="place that holds the run (default: %(default)s)")
    cost.add_argument("--json", action="store_true", help="print JSON")
    cost.set_defaults(verb=_cost)


def _request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, help=f"one of {', '.join(recipes())}, or a YAML file")
    parser.add_argument("--source", default="", help="folder of images (default: what the recipe says)")
    parser.add_argument(
        "--set", action="append", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="override settings"
    )


def _run(arguments: argparse.Namespace) -> int:
    from pipeline.local.run import run_here

    run_here(arguments.recipe, arguments.workdir, arguments.source, _overrides(arguments), Console(highlight=False))
    return EXIT_DONE


def _config(arguments: argparse.Namespace) -> int:
    config = resolve(arguments.recipe, _overrides(arguments), arguments.source)
    sys.stdout.write(to_yaml(config))
    return EXIT_DONE


def _plan(arguments: argparse.Namespace) -> int:
    from pipeline.cost.verbs import show_plan

    overrides = _overrides(arguments)
    if arguments.prices is not None:
        overrides.append(f"placement.prices={json.dumps(arguments.prices)}")
    if arguments.images is not None and arguments.images < 0:
        raise ConfigError(f"--images {arguments.images}: expected how many images there are, 0 or more")
    settings = resolve(arguments.recipe, overrides, arguments.source)
    console = Console(highlight=False)
    show_plan(settings, arguments.workdir, arguments.images, arguments.assume, arguments.json, console)
    return EXIT_DONE


def _cost(arguments: argparse.Namespace) -> int:
    from pipeline.cost.verbs import show_cost

    show_cost(arguments.run, arguments.workdir, arguments.json, Console(highlight=False))
    return EXIT_DONE


def _compile(arguments: argparse.Namespace) -> int:
    from pipeline.kubeflow.compile import compile_to
    from pipeline.kubeflow.release import Deployment, read_deployment

    if arguments.file is not None:
        deployment = read_deployment(arguments.file)
    else:
        told = {"image": arguments.image, "gpu_image": arguments.gpu_image, "retries": arguments.retries}
        deployment = Deployment.parse({**told, "recipe": arguments.recipe, "workdir": arguments.workdir})
    compile_to(arguments.output, deployment, arguments.recipe, _overrides(arguments))
    return EXIT_DONE


def _overrides(arguments: argparse.Namespace) -> list[str]:
    return [text for group in arguments.set for text in group]


if __name__ == "__main__":
    sys.exit(main())
