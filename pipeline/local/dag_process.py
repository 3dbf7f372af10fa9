"""The pipeline on this machine: each step a process, one after the other or side by side.

    python -m pipeline.local.dag_process --recipe demo --workdir work --scratch /tmp/somewhere

`darkroom run` starts this as a process of its own and tells a person what is going on; what is printed here is for a
log: Kubeflow's own words, whatever the steps' libraries say, and one JSON line per event.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from components.errors import EXIT_DONE, DarkroomError

# Any name serves where steps run as processes; kfp warns of images whose name does not say Python.
_IMAGE = "python-on-this-machine"
_QUOTED = re.compile(r"'([^']+)'")
_COLOUR = re.compile(r"\x1b\[\d+m")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline; returns 0 where every step did what it should."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.local.dag_process",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", required=True, help="name of a recipe, or a YAML file")
    parser.add_argument("--workdir", required=True, help="local folder or s3://bucket/prefix that holds everything")
    parser.add_argument("--scratch", required=True, type=Path, help="existing folder for what nobody needs afterwards")
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    # Whoever stops the group stops the steps; this process stays to pass on their last words.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    _name_this_python(arguments.scratch)
    return _run(arguments.recipe, arguments.workdir, arguments.scratch)


def _run(recipe: str, workdir: str, scratch: Path) -> int:
    from kfp import local

    from pipeline.dag import build
    from pipeline.pod import Pod
    from pipeline.work import StepProgress

    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=str(scratch / "kfp"), workspace_root=str(scratch / "kfp")
    )
    pipeline = build(lambda _step: Pod(_IMAGE))
    try:
        pipeline(recipe=recipe, workdir=workdir)
    except RuntimeError as error:
        if (tasks := _failed(str(error))) is None:
            raise
        StepProgress("pipeline").event("pipeline-failed", tasks=tasks)
        return DarkroomError.exit_code
    return EXIT_DONE


def _failed(message: str) -> list[str] | None:
    """Return the names of the tasks that failed, from Kubeflow's message; None where it is about something else."""
    _, found, chain = _COLOUR.sub("", message).partition("Inner task failed: ")
    return _QUOTED.findall(chain) if found else None


def _name_this_python(scratch: Path) -> None:
    """Make ``python3`` mean this interpreter.

    kfp.local puts the interpreter's path in place of that word wherever it stands, unquoted, be it in a setting or in
    the name of a folder; replacing the word by itself changes nothing.
    """
    folder = scratch / "bin"
    folder.mkdir()
    script = folder / "python3"
    script.write_bytes(os.fsencode(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'))
    script.chmod(0o700)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    sys.executable = "python3"


if __name__ == "__main__":
    sys.exit(main())
