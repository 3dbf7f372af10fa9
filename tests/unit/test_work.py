"""Every step leaves a record of how it went, whatever ends it, and none of an earlier time is taken for one of now."""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.errors import DataError, Preempted, StorageError
from components.image.records import read_images
from components.progress import Progress
from components.storage.open import open_storage
from pipeline import work
from pipeline.config import NO_OVERRIDES, resolve_parameters
from pipeline.work import OpenRun, WorkingStep, open_run, recorded, write_report

RECIPE = str(Path(__file__).parents[1] / "recipes/small.yaml")


@pytest.fixture
def config(tmp_path: Path) -> str:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("a red picture")
    return work.configure(RECIPE, str(tmp_path / "work"), str(images), [])


@pytest.fixture
def run(config: str) -> OpenRun:
    return open_run(config)


def record(run: OpenRun, name: str) -> dict[str, Any]:
    values: dict[str, Any] = run.folder.read_json(f"steps/{name}.json")
    return values


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_settings_are_handed_on_whole(tmp_path: Path, run: OpenRun) -> None:
    assert run.settings.ingest.source == str(tmp_path / "images")
    assert run.folder.read_json("config.json") == run.settings.model_dump(mode="json")
    assert run.folder.url == f"{tmp_path}/work/runs/{run.settings.run}"


def test_the_arguments_of_a_step_hold_no_settings(tmp_path: Path, config: str, run: OpenRun) -> None:
    given = (
        RECIPE,
        str(tmp_path / "work"),
        str(tmp_path / "images"),
        ["placement.env={HTTPS_PROXY: internal.example}"],
    )
    other = work.configure(*given)
    assert "internal.example" not in other
    assert len(other) < 300
    assert other != config
    # Each still stands for its own settings, although both are of one run.
    assert open_run(other).run == run.run
    assert open_run(other).settings.placement.env == {"HTTPS_PROXY": "internal.example"}
    assert open_run(config).settings == run.settings


def test_a_step_tells_and_records_what_it_did(config: str, run: OpenRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = time.time()
    work.run_step("ingest", config)
    assert work.lanes(config) == ["00", "01"]
    first, *_, last = events(capsys)
    assert first == {"event": "step-started", "by": "ingest", "step": "ingest", "group": None}
    entry = record(run, "ingest")
    assert last == {"event": "step-ended", "by": "ingest", **entry}
    assert entry["status"] == "done"
    assert entry["result"]["images"] == 3
    assert (entry["error"], entry["exit_code"]) == (None, None)
    assert before - 1 <= entry["started"] <= time.time()
    assert 0 <= entry["seconds"] < 60


def test_the_events_of_groups_say_whose_they_are(config: str, run: OpenRun, capsys: pytest.CaptureFixture[str]) -> None:
    work.run_step("ingest", config)
    work.run_step("caption", config, lane="01")
    by = {event["by"] for event in events(capsys)}
    assert by == {"ingest", "caption 01"}
    images = [len(read_images(run.workdir, run.source_id, group)) for group in ("g0", "g1")]
    assert record(run, "caption-01")["result"] == {"groups": 1, "captioned": images[1], "reused": 0, "rejected": 0}


def test_a_lane_works_on_its_share_of_the_groups_one_after_the_other(tmp_path: Path, config: str) -> None:
    more = ["ingest.lanes=3", "ingest.group_images=1"]
    config = work.configure(RECIPE, str(tmp_path / "work"), str(tmp_path / "images"), more)
    work.run_step("ingest", config)
    assert work.lanes(config) == ["00", "01", "02"]
    results = [work.run_step("caption", config, lane=lane) for lane in work.lanes(config)]
    assert results == [record(open_run(config), f"caption-{lane}")["result"] for lane in work.lanes(config)]
    assert [result["groups"] for result in results] == [2, 1, 1]
    assert sum(result["captioned"] for result in results) == 3


def test_a_step_that_fails_records_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = work.configure(RECIPE, str(tmp_path / "work"), str(tmp_path / "nowhere"), [])
    with pytest.raises(DataError):
        work.run_step("ingest", config)
    entry = record(open_run(config), "ingest")
    assert entry["status"] == "failed"
    assert entry["exit_code"] == 65
    assert all(part in entry["error"] for part in (str(tmp_path / "nowhere"), "folder", "ingest.source"))
    assert events(capsys)[-1] == {"event": "step-ended", "by": "ingest", **entry}


def test_what_nobody_expected_is_recorded_with_its_kind(run: OpenRun) -> None:
    def broken(_: Progress) -> dict[str, Any]:
        nothing: dict[str, dict[str, Any]] = {}
        return nothing["missing"]

    with pytest.raises(KeyError):
        recorded(run, "index", broken)
    entry = record(run, "index")
    assert (entry["status"], entry["error"], entry["exit_code"]) == ("failed", "KeyError: 'missing'", 70)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_is_stopped_says_that_it_goes_on_another_time(run: OpenRun, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def stopped(_: Progress) -> dict[str, Any]:
        signal.raise_signal(number)
        raise AssertionError("the signal came to nothing")

    with pytest.raises(Preempted, match="start again to continue"):
        recorded(run, "latents", stopped, "000")
    entry = record(run, "latents-000")
    assert (entry["status"], entry["exit_code"]) == ("stopped", 75)
    assert signal.getsignal(number) == before


def test_a_record_is_there_while_the_step_runs(run: OpenRun) -> None:
    statuses = []

    def look(_: Progress) -> dict[str, Any]:
        statuses.append(record(run, "index")["status"])
        return {}

    recorded(run, "index", look)
    assert statuses == ["running"]


def test_a_record_that_cannot_be_written_fails_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = open_run(work.configure(RECIPE, str(tmp_path / "work"), "images", [])).settings
    run = OpenRun(settings, open_storage(str(tmp_path / "other")))

    def spoil(_: Progress) -> dict[str, Any]:
        steps = tmp_path / "other/runs" / settings.run / "steps"
        (steps / "index.json").unlink()
        steps.rmdir()
        steps.write_text("a file where the folder was")
        return {}

    with pytest.raises(StorageError):
        recorded(run, "index", spoil)
    last = events(capsys)[-1]
    assert (last["status"], last["exit_code"], last["result"]) == ("failed", 74, None)


def test_a_new_time_of_the_same_run_forgets_the_records_of_the_last(config: str, run: OpenRun, tmp_path: Path) -> None:
    work.run_step("ingest", config)
    recorded(run, "latents", lambda _: {"encoded": 99}, "007")
    run.folder.write_json("metrics.jsonl", {"step": 1})
    again = work.configure(RECIPE, str(tmp_path / "work"), str(tmp_path / "images"), [])
    assert again == config
    keys = [entry.key for entry in run.folder.list()]
    assert [key for key in keys if not key.startswith("settings/")] == ["config.json", "metrics.jsonl", "plan.json"]


def test_the_report_names_a_step_that_was_killed(config: str, run: OpenRun) -> None:
    work.run_step("ingest", config)
    # What a step leaves whose process is killed: the record of its start.
    start = {"step": "latents", "group": "001", "status": "running", "started": time.time(), "seconds": 0.0}
    run.folder.write_json("steps/latents-001.json", {**start, "result": None, "error": None, "exit_code": None})
    write_report(run, "FAILED", Progress(io.StringIO()))
    numbers = run.folder.read_json("report.json")
    assert numbers["status"] == "failed"
    assert numbers["error"]["step"] == "latents 001"
    assert "killed, or ran out of memory" in numbers["error"]["message"]
    assert "killed, or ran out of memory" in run.folder.read("report.html").decode()
    assert record(run, "ingest")["status"] == "done"


def test_the_report_is_written_where_the_records_are_spoilt(run: OpenRun) -> None:
    run.folder.write("steps/ingest.json", b"{torn")
    write_report(run, "FAILED", Progress(io.StringIO()))
    assert run.folder.read_json("report.json")["status"] == "failed"


def test_the_dashboard_gets_page_summary_and_numbers(config: str, run: OpenRun, tmp_path: Path) -> None:
    work.run_step("ingest", config)
    logged: dict[str, float] = {}
    page, summary = tmp_path / "page", tmp_path / "summary"
    settings = resolve_parameters(RECIPE, str(tmp_path / "images"), NO_OVERRIDES)
    work.report(settings, str(tmp_path / "work"), "SUCCEEDED", str(page), str(summary), logged.__setitem__)
    assert page.read_bytes() == run.folder.read("report.html")
    assert summary.read_text().startswith("# ")
    assert logged["rejected"] == 0
    assert run.folder.read_json("report.json")["status"] == "failed", "no training is on record, whatever Kubeflow says"


def test_a_training_that_is_stopped_leaves_a_report(config: str, run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow may cut off the step that writes it otherwise."""
    from pipeline.launch import cluster_launcher

    def stopped(_context: Any) -> Any:
        raise Preempted("asked to stop while training")

    monkeypatch.setattr(cluster_launcher, "launch", stopped)
    settings = run.settings.model_copy(update={"launch": run.settings.launch.model_copy(update={"where": "trainjob"})})
    on_cluster = OpenRun(settings, run.workdir)
    inputs = {"base_model": "base", "encoding_key": "key", "dataset": "digest"}
    with pytest.raises(Preempted):
        recorded(
            on_cluster, "train", lambda progress: work._launch(WorkingStep(settings, run.workdir, progress, inputs))
        )
    assert run.folder.read_json("report.json")["status"] == "stopped"
    assert run.folder.exists("report.html")
    record = run.folder.read_json("steps/train.json")
    assert (record["status"], record["error"]) == ("stopped", "asked to stop while training")
