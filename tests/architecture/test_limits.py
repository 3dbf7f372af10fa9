"""A test that hangs fails within its limit and says where it hung, and what comes after it runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAD = """
import ctypes, threading
import pytest
import tests.conftest
tests.conftest.LAST_SECONDS = 0.5
"""


def run_tests(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests as this suite is run."""
    (folder / "test_hanging.py").write_text(HEAD + textwrap.dedent(tests))
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "tests.conftest"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_a_test_that_waits_for_ever_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    ended = run_tests(
        tmp_path,
        """
        @pytest.mark.timeout(0.5)
        def test_waiting():
            threading.Thread(target=stay, daemon=True).start()
            threading.Event().wait()

        def stay():
            threading.Event().wait()

        def test_next():
            pass
        """,
    )
    assert ended.returncode == 1
    assert "1 failed, 1 passed" in ended.stdout
    assert "Timeout (>0.5s)" in ended.stdout
    assert "in stay" in ended.stdout, "the stacks of the other threads"


def test_a_test_that_waits_inside_a_call_ends_the_run_and_says_where(tmp_path: Path) -> None:
    ended = run_tests(
        tmp_path,
        """
        @pytest.mark.timeout(0.5)
        def test_waiting():
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        """,
    )
    assert ended.returncode == 1
    assert "in test_waiting" in ended.stderr


def test_each_mark_has_its_limit(tmp_path: Path) -> None:
    ended = run_tests(
        tmp_path,
        """
        def limit(item):
            marks = [mark.args[0] for mark in item.iter_markers("timeout")]
            return marks[0] if marks else float(item.config.getini("timeout"))

        @pytest.mark.slow
        def test_slow(request):
            assert limit(request.node) == 900

        @pytest.mark.slow
        @pytest.mark.proof
        def test_proof(request):
            assert limit(request.node) == 3600

        def test_plain(request):
            assert limit(request.node) == 300
        """,
    )
    assert ended.returncode == 0, ended.stdout
