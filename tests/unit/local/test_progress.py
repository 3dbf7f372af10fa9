"""What ended a pipeline is known even where the step that failed had no time to say so."""

from __future__ import annotations

from typing import Any

from components.errors import Preempted
from pipeline.local.progress import PipelineProgress


def after(*events: dict[str, Any]) -> PipelineProgress:
    progress = PipelineProgress()
    for event in events:
        progress.add_event(event)
    return progress


def started(step: str, group: str | None = None) -> dict[str, Any]:
    return {"event": "step-started", "step": step, "group": group}


def ended(step: str, group: str | None = None, at: float = 0.0, seconds: float = 1.0, **fields: Any) -> dict[str, Any]:
    record = {"status": "done", "error": None, "exit_code": None, "started": at, "seconds": seconds, **fields}
    return {"event": "step-ended", "step": step, "group": group, **record}


def failed(step: str, group: str | None, error: str, exit_code: int) -> dict[str, Any]:
    return ended(step, group, status="failed", error=error, exit_code=exit_code)


def test_where_all_went_well_there_is_no_error() -> None:
    progress = after(started("ingest"), ended("ingest"), {"event": "reported"})
    assert progress.failure(0) is None
    assert progress.reported
    assert not progress.running


def test_the_first_step_that_failed_gives_the_error_and_the_exit_code() -> None:
    progress = after(
        started("caption", "000"),
        started("caption", "001"),
        failed("caption", "001", "no such folder", 65),
        failed("caption", "000", "something else", 70),
        {"event": "pipeline-failed", "tasks": ["caption"]},
    )
    error = progress.failure(70)
    assert str(error) == "caption 001: no such folder"
    assert error is not None
    assert error.exit_code == 65


def test_a_step_that_was_stopped_has_not_failed() -> None:
    progress = after(started("evaluate"), ended("evaluate", status="stopped", error="asked to stop", exit_code=75))
    assert isinstance(progress.failure(70), Preempted)


def test_a_step_that_was_killed_is_one_that_has_not_ended() -> None:
    progress = after(started("ingest"), ended("ingest"), started("latents", "001"), started("latents", "000"))
    error = progress.failure(70)
    assert str(error).startswith("latents 000, latents 001: its process ended without a word: it was killed, or")
    assert error is not None
    assert error.exit_code == 70


def test_a_step_that_could_not_be_started_is_told_of_by_its_traceback() -> None:
    progress = after(
        started("ingest"), ended("ingest"), {"event": "pipeline-failed", "tasks": ["caption", "for-loop-1"]}
    )
    for line in (
        "ERROR: something of a library\n",
        "    Traceback (most recent call last):\n",
        '      File "x.py", line 1, in <module>\n',
        "    kfp.thing.ModuleNotFoundError: No module named 'PIL'\n",
        "10:23:01 - INFO - Task 'caption' finished with status FAILURE\n",
    ):
        progress.add_line(line)
    error = progress.failure(70)
    assert str(error) == (
        "caption: it failed before it could say why; kfp.thing.ModuleNotFoundError: No module named 'PIL'"
    )


def test_where_nothing_is_known_the_log_may_tell() -> None:
    assert str(after().failure(1)) == "the pipeline: it failed before it could say why; the log may tell more"


def test_the_time_of_a_step_is_that_of_its_groups_together() -> None:
    progress = after(
        ended("ingest", at=0.0, seconds=0.5),
        ended("latents", "001", at=12.0, seconds=9.0),
        ended("latents", "000", at=10.0, seconds=8.0),
    )
    assert progress.seconds() == {"ingest": 0.5, "latents": 11.0}
