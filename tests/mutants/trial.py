"""Try tests on a copy of the tree, again and again: what takes seconds to import is imported once, and then forked.

``python -m tests.mutants.trial LOG`` stands in a copy. Every line that it reads is a JSON list of pytest's arguments
and a limit in seconds; every line that it writes is pytest's exit status, or ``null`` if the limit was reached. Only
libraries are imported here: the code and its tests are imported by each trial itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_LIBRARIES = ("boto3", "diffusers", "moto", "numpy", "PIL", "pydantic", "pytest", "torch", "transformers")


def main() -> None:
    """Answer every line until there are no more."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, seconds = json.loads(line)
        print(json.dumps(_status(arguments, seconds)), flush=True)


def _status(arguments: Sequence[str], seconds: float) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=_test, args=(arguments,))
    process.start()
    try:
        process.join(seconds)
        return process.exitcode
    finally:
        _kill_all_but_this_one()
        process.join()


def _test(arguments: Sequence[str]) -> None:
    import pytest

    nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    status = pytest.main(list(arguments))
    sys.stdout.flush()
    os._exit(status)  # a thread that a mutant left waiting is no reason to wait


def _kill_all_but_this_one() -> None:
    """Kill what stands in this copy: ranks have sessions of their own, and a mutant may have made them orphans."""
    here = Path.cwd()
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            number = int(place.parent.name)
            if number != os.getpid() and place.readlink().is_relative_to(here):
                os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    main()
