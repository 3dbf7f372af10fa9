"""What a killed process leaves in the temporary folder is removed by the next one; nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.storage.scratch import scratch_folder, sweep

MAKER = """
import sys
from components.storage.scratch import scratch_folder
with scratch_folder("test") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def maker() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has made a folder and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", MAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def killed(maker: tuple[subprocess.Popen[str], Path]) -> Path:
    process, folder = maker
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder


def test_a_folder_is_gone_at_the_end(temporary: Path) -> None:
    with scratch_folder("test") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == temporary
        sweep()
        assert (folder / "file").exists()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next(
    maker: tuple[subprocess.Popen[str], Path], temporary: Path
) -> None:
    folder = maker[1]
    sweep()
    assert (folder / "file").exists(), "its owner lives"
    killed(maker)
    with scratch_folder("other") as own:
        assert list(temporary.iterdir()) == [own]


def test_a_number_that_is_used_again_is_another_process(maker: tuple[subprocess.Popen[str], Path]) -> None:
    folder = killed(maker)
    pid = folder.name.split("-")[2]
    reborn = folder.rename(folder.with_name(folder.name.replace(f"-{pid}-", f"-{os.getpid()}-", 1)))
    sweep()
    assert not reborn.exists()


def test_what_an_orphan_was_started_with_stays(maker: tuple[subprocess.Popen[str], Path]) -> None:
    folder = killed(maker)
    command = [sys.executable, "-c", "import sys; print('on', flush=True); sys.stdin.read()", f"--scratch={folder}/x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        sweep()
        assert folder.exists()
    sweep()
    assert not folder.exists()


def test_nothing_else_is_touched(maker: tuple[subprocess.Popen[str], Path], temporary: Path) -> None:
    folder = killed(maker)
    _, purpose, pid, start, machine, _ = folder.name.split("-")
    theirs = [
        temporary / "darkroom-models-0",
        temporary / "darkroom-notes",
        temporary / f"darkroom-{purpose}-{pid}-{start}-00000000-abc",
        temporary / f"other-{purpose}-{pid}-{start}-{machine}-abc",
    ]
    for other in theirs:
        other.mkdir()
    link = temporary / f"darkroom-{purpose}-{pid}-{start}-{machine}-link"
    link.symlink_to(theirs[1])
    sweep()
    assert set(temporary.iterdir()) == {*theirs, link}
