"""What Prometheus is told of runs, from real records in a real folder and over real HTTP."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from components.accounting.ledger import append_ledger, ledger_lines
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.kubeflow.exporter import Exporter, is_training, last_metrics, preemptions
from tests.processes import Process


@pytest.fixture
def workdir(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def told(exporter: Exporter) -> dict[str, float]:
    """Return the samples as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(exporter)
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def events(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"time": float(at), "event": name, **fields} for at, name in enumerate(names)]


def write_run(workdir: Storage, run: str) -> Storage:
    folder = workdir.child(f"runs/{run}")
    folder.write_json("config.json", {"train": {"steps": 400}, "launch": {"budget_usd": 20.0}})
    folder.append_lines("metrics.jsonl", [{"step": step, "loss": 1 / step} for step in (1, 2, 4)])
    folder.append_lines("events.jsonl", events("attempt-started", "training", "preempted"))
    folder.append_lines("events.jsonl", events("attempt-ended", exit_code=75))
    folder.append_lines("events.jsonl", events("attempt-ended", exit_code=1))
    folder.append_lines("events.jsonl", events("attempt-started", "training"))
    lines = ledger_lines(0, {"pending": 60.0, "useful": 3600.0, "lost": 1800.0}, nodes=2, pool="spot", usd_per_hour=3.0)
    append_ledger(folder, lines)
    return folder


def test_a_run_is_told_by_its_own_records(workdir: Storage) -> None:
    write_run(workdir, "cats-1a2b3c4d")
    exporter = Exporter(workdir, Progress(io.StringIO()), clock=lambda: 1234.0)
    exporter.refresh()
    found = told(exporter)
    assert {name: found[f'darkroom_run_{name}{{run="cats-1a2b3c4d"}}'] for name in (
        "step", "steps", "loss", "training", "spent_usd", "budget_usd", "preemptions_total", "crashes_total"
    )} == {
        "step": 4, "steps": 400, "loss": 0.25, "training": 1, "spent_usd": 9.0, "budget_usd": 20.0,
        "preemptions_total": 1, "crashes_total": 1,
    }  # fmt: skip
    assert found['darkroom_run_node_seconds_total{run="cats-1a2b3c4d",state="useful"}'] == 7200.0
    assert found["darkroom_exporter_read_timestamp_seconds"] == 1234.0


def test_runs_come_change_and_go(workdir: Storage) -> None:
    exporter = Exporter(workdir, Progress(io.StringIO()))
    exporter.refresh()
    assert not [name for name in told(exporter) if name.startswith("darkroom_run")]
    folder = write_run(workdir, "one")
    workdir.child("runs/two").write_json("config.json", {"train": {"steps": 7}, "launch": {"budget_usd": None}})
    exporter.refresh()
    assert told(exporter)['darkroom_run_step{run="one"}'] == 4
    assert told(exporter)['darkroom_run_steps{run="two"}'] == 7
    assert 'darkroom_run_budget_usd{run="two"}' not in told(exporter)
    folder.append_lines("metrics.jsonl", [{"step": 5, "loss": None}])
    workdir.delete_tree("runs/two")
    exporter.refresh()
    assert told(exporter)['darkroom_run_step{run="one"}'] == 5
    assert not [name for name in told(exporter) if "two" in name]


@pytest.mark.parametrize(
    ("record", "content"),
    [("config.json", b"{"), ("events.jsonl", b'{"time": 1}\n'), ("ledger.jsonl", b'{"attempt": "x"}\n')],
)
def test_a_broken_record_is_told_and_hides_no_other_run(record: str, content: bytes, workdir: Storage) -> None:
    log = io.StringIO()
    write_run(workdir, "whole")
    write_run(workdir, "broken")
    exporter = Exporter(workdir, Progress(log))
    exporter.refresh()
    workdir.child("runs/broken").write(record, content)
    exporter.refresh()
    assert told(exporter)['darkroom_run_step{run="whole"}'] == 4
    assert told(exporter)['darkroom_run_step{run="broken"}'] == 4  # as last seen
    assert json.loads(log.getvalue())["run"] == "broken"


def test_a_name_that_no_run_should_have_breaks_no_line(workdir: Storage) -> None:
    write_run(workdir, 'a"b\\c')
    exporter = Exporter(workdir, Progress(io.StringIO()))
    exporter.refresh()
    assert told(exporter)['darkroom_run_step{run="a\\"b\\\\c"}'] == 4


def test_the_last_line_is_found_behind_a_torn_one_and_beyond_what_is_read(workdir: Storage) -> None:
    assert last_metrics(workdir) == {}
    workdir.append_lines("metrics.jsonl", [{"step": step, "loss": 0.5} for step in range(9000)])
    workdir.append("metrics.jsonl", b'{"step": 9000, "lo')
    assert workdir.entry("metrics.jsonl").size > 1 << 17
    assert last_metrics(workdir)["step"] == 8999


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), False),
        (("attempt-started",), True),
        (("loading", "training", "checkpoint"), True),
        (("loading", "training", "preempted"), False),
        (("loading", "training", "finished"), False),
        (("loading", "training", "preempted", "loading"), True),
        (("training", "attempt-ended"), False),
    ],
)
def test_a_run_trains_from_the_start_of_an_attempt_to_its_end(names: tuple[str, ...], expected: bool) -> None:
    assert is_training(events(*names)) is expected


def test_a_preemption_counts_once_whoever_tells_of_it() -> None:
    trainer = events("preempted", "preempted")
    assert preemptions(trainer) == 2
    assert preemptions([*trainer, *events("attempt-ended", exit_code=75)]) == 2
    assert preemptions([*trainer, *events("attempt-ended", "attempt-ended", "attempt-ended", exit_code=75)]) == 3


def test_it_serves_over_http_and_stops_when_told(workdir: Storage, tmp_path: Path) -> None:
    write_run(workdir, "served")
    command = [sys.executable, "-m", "pipeline.kubeflow.exporter", "--workdir", str(tmp_path), "--port", "0"]
    with Process(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        text, deadline = "", time.monotonic() + 30
        while "darkroom_run_step{" not in text and time.monotonic() < deadline:  # the first reading may be under way
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        assert re.search(r'darkroom_run_step\{run="served"\} 4\.0', text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
