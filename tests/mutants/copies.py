"""Copies of the working tree in which one module at a time is a mutant; the tree itself is never changed."""

from __future__ import annotations

import compileall
import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

# Libraries that are imported before pytest starts cannot have their asserts rewritten, which none here needs.
_QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
# Proofs take too long. Hypothesis tries the same examples on every mutant and keeps none for the next.
_PYTEST = ("-x", "-q", "--tb=short", "-m", "not proof", "-p", "no:cacheprovider", "--hypothesis-profile=ci", *_QUIET)

T = TypeVar("T")
R = TypeVar("R")


class Copy:
    """A copy of every file that git tracks or would, and a process that tries tests there.

    Args:
        root: The working tree.
        folder: Where the copy, its log and what the tests leave go; what was there before goes away.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._tree = folder / "tree"
        shutil.rmtree(folder, ignore_errors=True)
        for name in _files(root):
            (self._tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, self._tree / name)
        # Checked by the source's hash: a mutant may be as long as its original and written within the same second.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self._tree, quiet=2, invalidation_mode=checked)
        self._arguments = [*_PYTEST, f"--basetemp={folder / 'tmp'}"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            # Most tests take less than a second: one that has no limit of its own hangs for a minute only.
            "PYTEST_TIMEOUT": "60",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.trial", str(folder / "log")],
            cwd=self._tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def try_tests(self, tests: Sequence[str], seconds: float) -> int | None:
        """Run tests until one fails; return pytest's exit status, or None if they take longer than so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([[*self._arguments, *tests], seconds]) + "\n")
        self._process.stdin.flush()
        status: int | None = json.loads(self._process.stdout.readline())
        return status

    @contextmanager
    def with_text(self, module: str, text: str) -> Iterator[None]:
        """Let a module have another text within the block."""
        path = self._tree / module
        original = path.read_bytes()
        path.write_text(text, "utf-8")
        try:
            yield
        finally:
            path.write_bytes(original)

    def close(self) -> None:
        """End the process, which ends the tests that it runs."""
        self._process.terminate()
        self._process.communicate()


class Copies:
    """Several copies, at work side by side.

    Args:
        root: The working tree.
        folder: Where they go.
        jobs: How many.
    """

    def __init__(self, root: Path, folder: Path, jobs: int) -> None:
        self._copies = [Copy(root, folder / str(number)) for number in range(jobs)]
        self._idle: SimpleQueue[Copy] = SimpleQueue()
        for copy in self._copies:
            self._idle.put(copy)
        self._threads = ThreadPoolExecutor(jobs)

    def map(self, work: Callable[[Copy, T], R], items: Iterable[T]) -> Iterator[R]:
        """Do a piece of work for each item on a copy that is idle; yield what comes of it, in the items' order."""

        def on_one(item: T) -> R:
            copy = self._idle.get()
            try:
                return work(copy, item)
            finally:
                self._idle.put(copy)

        return self._threads.map(on_one, items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        for copy in self._copies:
            copy.close()


def _files(root: Path) -> list[str]:
    """Return what git tracks in a tree and what it would."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]
