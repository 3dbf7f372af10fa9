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
from pipeline.work import Job, open_job, recorded, write_report

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
def job(config: str) -> Job:
    return open_job(config)


def record(job: Job, name: str) -> dict[str, Any]:
    values: dict[str, Any] = job.run.read_json(f"steps/{name}.json")
    return values


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_settings_are_handed_on_whole(tmp_path: Path, job: Job) -> None:
    assert job.settings.ingest.source == str(tmp_path / "images")
    assert job.run.read_json("config.json") == job.settings.model_dump(mode="json")
    assert job.run.url == f"{tmp_path}/work/runs/{job.settings.run}"


def test_a_step_tells_and_records_what_it_did(config: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    before = time.time()
    assert work.ingest(config) == ["00", "01"]
    first, *_, last = told(capsys)
    assert first == {"event": "step-started", "by": "ingest", "step": "ingest", "group": None}
    kept = record(job, "ingest")
    assert last == {"event": "step-ended", "by": "ingest", **kept}
    assert kept["status"] == "done"
    assert kept["result"]["images"] == 3
    assert (kept["error"], kept["exit_code"]) == (None, None)
    assert before - 1 <= kept["started"] <= time.time()
    assert 0 <= kept["seconds"] < 60


def test_the_events_of_groups_say_whose_they_are(config: str, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    work.ingest(config)
    assert work.caption(config, "key", "01") == "01"
    by = {event["by"] for event in told(capsys)}
    assert by == {"ingest", "caption 01"}
    images = [len(read_images(job.workdir, job.source_id, group)) for group in ("g0", "g1")]
    assert record(job, "caption-01")["result"] == {"groups": 1, "captioned": images[1], "reused": 0, "rejected": 0}


def test_a_lane_works_on_its_share_of_the_groups_one_after_the_other(tmp_path: Path, config: str) -> None:
    more = ["ingest.lanes=3", "ingest.group_images=1"]
    config = work.configure(RECIPE, str(tmp_path / "work"), str(tmp_path / "images"), more)
    assert work.ingest(config) == ["00", "01", "02"]
    results = [
        record(open_job(config), f"caption-{work.caption(config, 'key', lane)}")["result"]
        for lane in ("00", "01", "02")
    ]
    assert [result["groups"] for result in results] == [2, 1, 1]
    assert sum(result["captioned"] for result in results) == 3


def test_a_step_that_fails_records_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = work.configure(RECIPE, str(tmp_path / "work"), str(tmp_path / "nowhere"), [])
    with pytest.raises(DataError):
        work.ingest(config)
    kept = record(open_job(config), "ingest")
    assert kept["status"] == "failed"
    assert kept["exit_code"] == 65
    assert str(tmp_path / "nowhere") in kept["error"]
    assert told(capsys)[-1] == {"event": "step-ended", "by": "ingest", **kept}


def test_what_nobody_expected_is_recorded_with_its_kind(job: Job) -> None:
    def broken(_: Progress) -> dict[str, Any]:
        nothing: dict[str, dict[str, Any]] = {}
        return nothing["missing"]

    with pytest.raises(KeyError):
        recorded(job, "index", broken)
    kept = record(job, "index")
    assert (kept["status"], kept["error"], kept["exit_code"]) == ("failed", "KeyError: 'missing'", 70)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_step_that_is_stopped_says_that_it_goes_on_another_time(job: Job, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def stopped(_: Progress) -> dict[str, Any]:
        signal.raise_signal(number)
        raise AssertionError("the signal came to nothing")

    with pytest.raises(Preempted):
        recorded(job, "latents", stopped, group="000")
    kept = record(job, "latents-000")
    assert (kept["status"], kept["exit_code"]) == ("failed", 75)
    assert signal.getsignal(number) == before


def test_a_record_is_there_while_the_step_runs(job: Job) -> None:
    seen = []

    def look(_: Progress) -> dict[str, Any]:
        seen.append(record(job, "index")["status"])
        return {}

    recorded(job, "index", look)
    assert seen == ["running"]


def test_a_record_that_cannot_be_written_fails_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = open_job(work.configure(RECIPE, str(tmp_path / "work"), "images", [])).settings
    job = Job(settings, open_storage(str(tmp_path / "other")))

    def spoil(_: Progress) -> dict[str, Any]:
        steps = tmp_path / "other/runs" / settings.run / "steps"
        (steps / "index.json").unlink()
        steps.rmdir()
        steps.write_text("a file where the folder was")
        return {}

    with pytest.raises(StorageError):
        recorded(job, "index", spoil)
    last = told(capsys)[-1]
    assert (last["status"], last["exit_code"], last["result"]) == ("failed", 74, None)


def test_a_new_time_of_the_same_run_forgets_the_records_of_the_last(config: str, job: Job, tmp_path: Path) -> None:
    work.ingest(config)
    recorded(job, "latents", lambda _: {"encoded": 99}, group="007")
    job.run.write_json("metrics.jsonl", {"step": 1})
    again = work.configure(RECIPE, str(tmp_path / "work"), str(tmp_path / "images"), [])
    assert again == config
    assert [entry.key for entry in job.run.list()] == ["config.json", "metrics.jsonl", "plan.json"]


def test_the_report_names_a_step_that_was_killed(config: str, job: Job) -> None:
    work.ingest(config)
    # What a step leaves whose process is killed: the record of its start.
    start = {"step": "latents", "group": "001", "status": "running", "started": time.time(), "seconds": 0.0}
    job.run.write_json("steps/latents-001.json", {**start, "result": None, "error": None, "exit_code": None})
    write_report(job, "FAILED", Progress(io.StringIO()))
    numbers = job.run.read_json("report.json")
    assert numbers["status"] == "failed"
    assert numbers["error"]["step"] == "latents 001"
    assert "killed" in numbers["error"]["message"]
    assert numbers["error"]["message"] in job.run.read("report.html").decode()
    assert record(job, "ingest")["status"] == "done"


def test_the_report_is_written_where_the_records_are_spoilt(job: Job) -> None:
    job.run.write("steps/ingest.json", b"{torn")
    write_report(job, "FAILED", Progress(io.StringIO()))
    assert job.run.read_json("report.json")["status"] == "failed"


def test_the_dashboard_gets_page_summary_and_numbers(config: str, job: Job, tmp_path: Path) -> None:
    work.ingest(config)
    logged: dict[str, float] = {}
    page, summary = tmp_path / "page", tmp_path / "summary"
    source = str(tmp_path / "images")
    work.report(RECIPE, str(tmp_path / "work"), source, [], "SUCCEEDED", str(page), str(summary), logged.__setitem__)
    assert page.read_bytes() == job.run.read("report.html")
    assert summary.read_text().startswith("# ")
    assert logged["rejected"] == 0
