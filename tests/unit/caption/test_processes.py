"""Captioning processes that are killed, hang or lose their parent end the step, and none of them outlives it.

The processes are real, and never come to a caption: the library that loads their models never ends its import.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from components.errors import DarkroomError, Hung, Preempted
from components.ingest.config import IngestConfig
from components.ingest.ingest import ingest
from components.progress import Progress
from components.storage.open import open_storage
from tests.processes import Process

ROOT = Path(__file__).parents[3]
RANKS = 2


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Starts a caption step with two processes, which wait for their model without end."""
    photos, model, work = tmp_path / "photos", tmp_path / "model", tmp_path / "work"
    photos.mkdir()
    model.mkdir()
    library = tmp_path / "library" / "transformers.py"
    library.parent.mkdir()
    library.write_text("import time\n\ntime.sleep(600)\n")
    for number in range(RANKS):
        Image.effect_noise((32, 32 + number), 50).convert("RGB").save(photos / f"{number}.png")
    ingested = ingest(IngestConfig(source=str(photos)), open_storage(str(work)), Progress(io.StringIO()))
    settings = [f"model={model}", "device=cpu", "batch_size=1", f"processes={RANKS}"]
    return [
        *("env", f"PYTHONPATH={library.parent}", sys.executable, "-m", "components.caption"),
        *("--workdir", str(work), "--source-id", ingested["source_id"]),
        *("--group", "g", "--caption-set", "src/key", *(f"--set={setting}" for setting in settings)),
    ]


class Step:
    """A running caption step, and the process ids of its ranks."""

    def __init__(self, command: list[str]) -> None:
        self.process = Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.ranks: list[int] = []
        assert self.process.stdout is not None
        while len(self.ranks) < RANKS:
            line = self.process.stdout.readline()
            assert line, f"it ended without its ranks: {self.process.communicate()}"
            event = json.loads(line)
            self.ranks += [event["pid"]] if event["event"] == "rank-started" else []

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it wrote to standard error."""
        with self.process:
            _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


def assert_gone(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + 60
    for pid in pids:
        while is_running(pid):
            assert time.monotonic() < deadline, f"process {pid} outlived the step"
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Tell whether there is such a process; one that nobody has waited for has ended all the same."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_that_is_killed_ends_the_step_with_a_message(command: list[str]) -> None:
    step = Step(command)
    os.kill(step.ranks[1], signal.SIGKILL)
    code, errors = step.end()
    assert code == DarkroomError.exit_code
    assert "SIGKILL" in errors
    assert "caption.processes" in errors
    assert_gone(step.ranks)


def test_a_process_that_hangs_ends_the_step_with_a_code_of_its_own(command: list[str]) -> None:
    step = Step([*command, "--set", "start_seconds=0.5"])
    code, errors = step.end()
    assert code == Hung.exit_code
    assert "hung before its first batch" in errors
    assert "error: a captioning process made no batch" in errors
    assert "caption.hang_seconds" in errors
    assert_gone(step.ranks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_is_asked_to_stop_stops_its_processes(command: list[str], number: signal.Signals) -> None:
    step = Step(command)
    step.process.send_signal(number)
    code, errors = step.end()
    assert code == Preempted.exit_code
    assert "start again to continue" in errors
    assert_gone(step.ranks)


def test_processes_end_with_a_step_that_is_killed(command: list[str]) -> None:
    step = Step(command)
    step.process.kill()
    assert_gone(step.ranks)
    assert step.end()[0] == -signal.SIGKILL
