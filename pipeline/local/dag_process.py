"""The pipeline on this machine: each step a process, one after the other or side by side.

    python -m pipeline.local.dag_process --recipe demo --workdir work --scratch /tmp/somewhere

`darkroom run` starts this as a process of its own and shows a person how it gets on; what is printed here is for a
log: Kubeflow's own lines, whatever the steps' libraries print, and one JSON line per event.
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

# Steps run as processes, so any name will do; kfp warns of images whose name does not contain "python".
_IMAGE = "python-on-this-machine"
_QUOTED = re.compile(r"'([^']+)'")
_COLOUR = re.compile(r"\x1b\[\d+m")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline; returns 0 if every step succeeded."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.local.dag_process",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", required=True, help="name of a recipe, or a YAML file")
    parser.add_argument("--workdir", required=True, help="local folder or s3://bucket/prefix that holds everything")
    parser.add_argument("--scratch", required=True, type=Path, help="existing folder for temporary files")
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    # A signal to the group stops the steps; this process stays until it has printed what they print last.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    _name_this_python(arguments.scratch)
    return _run(arguments.recipe, arguments.workdir, arguments.scratch)


def _run(recipe: str, workdir: str, scratch: Path) -> int:
    from kfp import local

    from pipeline.dag import build
    from pipeline.pod import StepPod
    from pipeline.work import StepProgress

    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=str(scratch / "kfp"), workspace_root=str(scratch / "kfp")
    )
    pipeline = build(lambda _step: StepPod(_IMAGE))
    try:
        pipeline(recipe=recipe, workdir=workdir)
    except RuntimeError as error:
        if (tasks := _failed(str(error))) is None:
            raise
        StepProgress("pipeline").event("pipeline-failed", tasks=tasks)
        return DarkroomError.exit_code
    return EXIT_DONE


def _failed(message: str) -> list[str] | None:
    """Return the names of the tasks that failed, from Kubeflow's message; None if it is about something else."""
    _, separator, chain = _COLOUR.sub("", message).partition("Inner task failed: ")
    return _QUOTED.findall(chain) if separator else None


def _name_this_python(scratch: Path) -> None:
    """Make ``python3`` mean this interpreter.

    kfp.local replaces that word by the interpreter's path wherever it occurs, unquoted, even in a setting or in the
    name of a folder; replacing the word by itself changes nothing.
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
