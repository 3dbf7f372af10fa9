"""Runs on this machine: found by the beginning of their names, shown with what their records say, compared, removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.accounting.ledger import append_ledger, ledger_lines
from components.errors import ConfigError
from components.storage.base import Storage
from components.storage.lease import PIPELINE, acquire
from components.storage.open import open_storage
from pipeline.cli import main
from pipeline.config import RunConfig, resolve
from pipeline.local import verbs
from pipeline.local.continuing import settings_to_continue
from pipeline.local.recent import recent, remember
from pipeline.local.runs import LocalRun, find, read_facts
from tests.cluster.operators import commit_checkpoint

SMALL = str(Path(__file__).parents[2] / "recipes/small.yaml")
SETTINGS = resolve(SMALL)
# Holds the lease of a run until it is asked to stop.
HOLDER = """
import signal, sys
from components.storage.lease import PIPELINE, acquire
from components.storage.open import open_storage
lease = acquire(open_storage(sys.argv[1]), PIPELINE, "a run")
signal.signal(signal.SIGTERM, lambda *_: (lease.release(), sys.exit(75)))
print(flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test begins in a folder of its own, without a cluster, and without runs that were used before."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(verbs, "_has_cluster", lambda: False)
    return folder


def make_run(workdir: Storage, name: str, settings: RunConfig = SETTINGS, /, **statuses: str) -> LocalRun:
    """Write what a run leaves: its settings, and the records of some steps."""
    run = LocalRun(workdir, name)
    run.folder.write_json("config.json", settings.model_dump(mode="json"))
    for number, (step, status) in enumerate(statuses.items()):
        record = {"step": step, "status": status, "started": 1e9 + number, "error": None}
        record |= {"error": f"{step} is out of disk"} if status == "failed" else {}
        record |= {"result": {"encoding_key": "key"}} if step == "autoencoder" else {}
        run.folder.write_json(f"steps/{step}.json", record)
    return run


@pytest.fixture
def workdir(here: Path) -> Storage:
    return open_storage(str(here / "workdir"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    text = out + err
    assert code or all(len(line) <= 80 for line in text.splitlines() if "/" not in line), text
    return text


@pytest.mark.parametrize(
    ("statuses", "report", "state"),
    [
        ({}, None, "new"),
        ({"ingest": "done", "train": "running"}, None, "killed"),
        ({"ingest": "done", "train": "stopped"}, None, "stopped"),
        ({"ingest": "failed"}, "failed", "failed"),
        ({"ingest": "done"}, None, "stopped"),
        ({"ingest": "done", "publish": "done"}, "succeeded", "done"),
    ],
)
def test_the_state_follows_from_the_records(
    workdir: Storage, statuses: Mapping[str, str], report: str | None, state: str
) -> None:
    run = make_run(workdir, "small-1", SETTINGS, **statuses)
    if report is not None:
        run.folder.write_json("report.json", {"status": report})
    assert read_facts(run).state == state
    acquire(run.folder, PIPELINE, "small-1")
    facts = read_facts(run)
    assert (facts.state, facts.error) == ("running", None)


def test_facts_hold_what_was_trained_and_paid(workdir: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(workdir, "small-1", ingest="done", train="stopped")
    commit_checkpoint(run.folder, 3)
    run.folder.write_lines("metrics.jsonl", [{"step": step, "loss": 1 / step} for step in range(1, 6)])
    append_ledger(run.folder, ledger_lines(0, {"useful": 90.0}, usd_per_hour=4.0))
    facts = read_facts(run)
    assert (facts.step, facts.saved_step, facts.steps, facts.loss) == (5, 3, 8, 0.2)
    assert facts.seconds == 90.0
    assert facts.usd == pytest.approx(0.1)
    shown = printed(capsys, "runs", "show", "small")
    assert "5/8 steps, 3 saved, loss 0.2, 1 min 30 s" in shown
    assert "darkroom resume small-1" in shown
    listed = printed(capsys, "runs", "ls")
    assert listed.splitlines()[-1].split() == ["small-1", "stopped", "5/8", "1", "min", "30", "s", "$0.10"]
    assert json.loads(printed(capsys, "runs", "ls", "--json"))[0] == facts.to_json()
    assert json.loads(printed(capsys, "runs", "show", "--json"))["saved_step"] == 3
    assert json.loads(printed(capsys, "status", "small-1", "--json"))["state"] == "stopped"
    assert "$0.10" in printed(capsys, "cost")


def test_a_run_is_found_by_its_beginning_where_it_was_used_last(here: Path, workdir: Storage) -> None:
    make_run(workdir, "small-1")
    make_run(workdir, "small-22")
    elsewhere = open_storage(str(here / "elsewhere"))
    make_run(elsewhere, "other-1")
    assert find("small-2").name == "small-22"
    with pytest.raises(ConfigError, match=r"'small' fits several runs .*small-1, small-22"):
        find("small")
    with pytest.raises(ConfigError, match=r"no run 'other' .*darkroom runs ls"):
        find("other")
    remember(elsewhere.url, "other-1")
    remember(workdir.url, "small-1")
    assert find("other").workdir.url == elsewhere.url
    assert find("").name == "small-1"
    assert find("", elsewhere.url).name == "other-1"
    remember(elsewhere.url, "other-1")
    assert find("").name == "other-1"
    assert recent()[-1] == (elsewhere.url, "other-1")
    make_run(open_storage(str(here / "third")), "a")
    assert find("", "third").name == "a"
    make_run(open_storage(str(here / "third")), "b")
    with pytest.raises(ConfigError, match=r"which run of third\? its runs are a, b"):
        find("", "third")


def test_without_runs_one_is_told_how_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert "darkroom run starts one" in printed(capsys, "runs", "ls")
    assert "darkroom run starts one" in printed(capsys, "status", code=78)
    assert "darkroom runs ls" in printed(capsys, "logs", "nothing", code=78)


def test_the_file_of_used_runs_may_be_damaged_or_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember("/somewhere", "run")
    (tmp_path / "state/darkroom/runs.json").write_text("{")
    assert recent() == []
    remember("/somewhere", "run")
    assert recent() == [("/somewhere", "run")]
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    remember("/somewhere", "other")
    assert recent() == []


def test_runs_are_compared_by_what_differs(workdir: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate, loss in (("small-1", 0.001, 0.5), ("small-2", 0.002, 0.25)):
        settings = resolve(SMALL, [f"train.optimizer.learning_rate={rate}"])
        run = make_run(workdir, name, settings)
        metric = {"label": "Fréchet distance", "value": 10 * loss}
        run.folder.write_json("report.json", {"validation_loss": loss, "metrics": {"frechet_distance": metric}})
    text = printed(capsys, "runs", "compare", "small-1", "small-2")
    rows = [line.split("  ") for line in text.splitlines()]
    told = {row[1].strip(): [cell.strip() for cell in row[2:] if cell.strip()] for row in rows if len(row) > 2}
    assert told["train.optimizer.learning_rate"] == ["0.001", "0.002"]
    assert told["held-out loss"] == ["0.5", "0.25"]
    assert told["Fréchet distance"] == ["5", "2.5"]
    assert "train.steps" not in text
    compared = json.loads(printed(capsys, "runs", "compare", "small-1", "small-2", "--json"))
    assert compared["settings"] == {"train.optimizer.learning_rate": [0.001, 0.002]}
    assert "two or more" in printed(capsys, "runs", "compare", "small-1", code=78)


def test_a_run_is_removed_only_by_its_whole_name_and_with_yes(
    workdir: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(workdir, "small-1", train="done")
    workdir.write("models/small/1/COMMIT", b"")
    assert "give the whole name to remove a run, such as small-1" in printed(capsys, "runs", "rm", "small", code=78)
    assert "--yes removes it" in printed(capsys, "runs", "rm", "small-1")
    assert run.folder.exists("config.json")
    lease = acquire(run.folder, PIPELINE, "small-1")
    assert "darkroom pause stops it" in printed(capsys, "runs", "rm", "small-1", "--yes", code=78)
    lease.release()
    continues = {"run": "small-1", "step": 3, "checkpoint": "c", "encoding": "key"}
    settings = RunConfig.parse(
        {**SETTINGS.model_dump(), "train": {**SETTINGS.train.model_dump(), "continued": continues}}
    )
    other = make_run(workdir, "small-2", settings)
    assert "small-2 continues small-1" in printed(capsys, "runs", "rm", "small-1", "--yes", code=78)
    commit_checkpoint(other.folder, 4)
    assert printed(capsys, "runs", "rm", "small-1", "--yes") == "removed small-1\n"
    assert next(workdir.list()).key.startswith("models/")
    assert "small-1" not in printed(capsys, "runs", "ls")


def test_a_report_is_opened(
    workdir: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(workdir, "small-1")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert "no report yet" in printed(capsys, "runs", "open", code=78)
    run.folder.write("report.html", b"")
    path = run.folder.local_path("report.html")
    assert path is not None
    assert printed(capsys, "runs", "open") == f"{path}\n"
    assert opened == [path.as_uri()]


def test_a_run_is_paused_by_asking_its_process_to_stop(workdir: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(workdir, "small-1", train="stopped")
    assert "is not running" in printed(capsys, "pause", "small")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", HOLDER, run.folder.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        text = printed(capsys, "pause", "small-1")
    assert process.returncode == 75
    assert "darkroom resume small-1 goes on" in text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


LOG = [
    "=== small-1, 2026-11-21 ===",
    json.dumps({"event": "step-started", "by": "ingest", "step": "ingest"}),
    json.dumps({"event": "progress", "by": "ingest", "done": 3, "total": 4, "what": "images"}),
    "Kubeflow says something",
    json.dumps({"event": "step", "by": "train", "step": 5, "steps": 8, "loss": 0.5}),
    json.dumps({"event": "resumed", "by": "train", "step": 3, "skipped": []}),
    json.dumps({"event": "step-ended", "by": "train", "step": "train", "status": "failed", "error": "no\ndata"}),
]


def test_the_log_of_a_run_is_shown_as_lines(workdir: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(workdir, "small-1")
    assert "has no log" in printed(capsys, "logs", "small-1", code=78)
    run.folder.write("pipeline.log", "\n".join(LOG).encode())
    assert printed(capsys, "logs").splitlines() == [
        "=== small-1, 2026-11-21 ===",
        "ingest      begins",
        "ingest      3/4 images",
        "Kubeflow says something",
        "train       step 5/8, loss 0.500",
        "train       resumed at step 3",
        "train       failed: no\\ndata",
    ]
    last = printed(capsys, "logs", "small-1", "--step", "train", "--lines", "2", "--follow").splitlines()
    assert last == ["train       resumed at step 3", "train       failed: no\\ndata"]


def test_a_run_goes_on_as_itself_if_nothing_that_it_computes_changes(workdir: Storage) -> None:
    run = make_run(workdir, SETTINGS.run, autoencoder="done")
    assert settings_to_continue(run, []).run == SETTINGS.run
    cheap = settings_to_continue(run, ["launch.budget_usd=5", "train.ranks=1", "launch.spot_drill={}"])
    assert (cheap.run, cheap.launch.budget_usd) == (SETTINGS.run, 5)


def test_a_run_with_more_steps_is_another_one_that_continues_it(workdir: Storage) -> None:
    run = make_run(workdir, SETTINGS.run, autoencoder="done")
    with pytest.raises(ConfigError, match="has no checkpoint to go on from"):
        settings_to_continue(run, ["train.steps=16"])
    commit_checkpoint(run.folder, 8)
    longer = settings_to_continue(run, ["train.steps=16", "train.optimizer.learning_rate=0.5"])
    continued = longer.train.continued
    assert (continued.run, continued.step, continued.encoding) == (SETTINGS.run, 8, "key")
    assert longer.run != SETTINGS.run
    assert longer.launch.spot_drill.step is None
    assert longer.train.optimizer.learning_rate == 0.5
    again = LocalRun(workdir, longer.run)
    again.folder.write_json("config.json", longer.model_dump(mode="json"))
    assert settings_to_continue(again, []) == longer
    for overrides, problem in (
        (["train.optimizer.learning_rate=0.5"], r"train\.steps \(8\) must be above the 8 steps"),
        (["train.steps=16", "seed=9"], r"seed: a run that continues"),
        (["train.steps=16", "ingest.source=elsewhere"], r"ingest\.source: a run that continues"),
    ):
        with pytest.raises(ConfigError, match=problem):
            settings_to_continue(run, overrides)


def test_a_run_of_another_release_cannot_be_continued(workdir: Storage) -> None:
    run = make_run(workdir, "small-1")
    run.folder.write_json("config.json", {**SETTINGS.model_dump(mode="json"), "new_section": {}})
    with pytest.raises(ConfigError, match=r"small-1 was run by another release.*\n.*new_section"):
        settings_to_continue(run, [])


@pytest.mark.parametrize("arguments", [[], ["--recipe", "demo", "--continue", "x"]])
def test_a_run_needs_a_recipe_or_a_run_to_continue(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--recipe" in printed(capsys, "run", *arguments, code=78)


def test_records_of_any_kind_are_read(workdir: Storage) -> None:
    """What is damaged leaves gaps."""
    run = make_run(workdir, "small-1", train="done")
    damaged: dict[str, Any] = {"report.json": b"[", "steps/ingest.json": b"3", "metrics.jsonl": b"\n[]\n{", "x": b""}
    for key, data in damaged.items():
        run.folder.write(key, data)
    facts = read_facts(run)
    assert (facts.state, facts.step) == ("stopped", 0)
