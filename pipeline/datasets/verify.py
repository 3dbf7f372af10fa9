"""``darkroom verify``: compare everything in a workdir with the digests that it has, and say how to repair it."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from components.errors import EXIT_DONE, ConfigError, DataError
from components.storage.open import open_storage
from pipeline.command_line import add_json, add_verb, print_json
from pipeline.datasets.damage import check_workdir
from pipeline.messages import line, plural


def add_verify(verbs: Any) -> None:
    """Add ``verify``."""
    examples = ("darkroom verify", "darkroom verify --workdir s3://bucket/darkroom --workers 16 --json")
    summary = "check that nothing in a workdir is damaged: records, datasets, models, checkpoints, books"
    parser = add_verb(verbs, "verify", summary, _verify, examples)
    parser.add_argument("--workdir", default="workdir", help="folder or s3://bucket/prefix (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="files at the same time (default: %(default)s)")
    add_json(parser, workdir="its address", checked="how many files, shards, models and checkpoints were checked",
             damaged="each damaged one: path, problem (a sentence that says what to do)")  # fmt: skip


def _verify(arguments: argparse.Namespace) -> int:
    """Check a workdir.

    Raises:
        DataError: If anything is damaged, after all is checked and everything damaged is named.
    """
    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected 1 or more")
    workdir, console = open_storage(arguments.workdir), Console(highlight=False)
    checked, damaged = 0, []
    with (Console(stderr=True) if arguments.json else console).status("") as status:
        for key, problem in check_workdir(workdir, arguments.workers):
            checked += 1
            status.update(f"{plural(checked, 'file')} checked")
            if problem:
                damaged.append({"path": key, "problem": problem})
                if not arguments.json:
                    console.print(line(f"{key}: {problem}"), markup=False, soft_wrap=True)
    if arguments.json:
        print_json({"workdir": workdir.url, "checked": checked, "damaged": damaged})
    else:
        console.print(f"{plural(checked, 'file')} checked, {len(damaged)} damaged", markup=False)
    if damaged:
        raise DataError(f"{plural(len(damaged), 'damaged file')} in {workdir.url}; each line above says what to do")
    return EXIT_DONE
