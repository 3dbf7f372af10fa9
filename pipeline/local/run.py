"""Running the pipeline on this machine, with a person watching."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TextIO

from rich.console import Console

from components.errors import ConfigError, DarkroomError, DataError, Preempted, StorageError, without_credentials
from components.image.sources import EXAMPLE, open_source
from components.image.union_source import open_places
from components.progress import Progress
from components.storage.base import Storage
from components.storage.files import explained
from components.storage.lease import PIPELINE, acquire
from components.storage.open import open_storage
from components.storage.scratch import scratch_folder
from pipeline.config import RunConfig, resolve, to_yaml
from pipeline.local.display import RunDisplay, read_event
from pipeline.local.progress import PipelineProgress
from pipeline.local.recent import remember
from pipeline.local.refresh import ReportRefresher
from pipeline.local.supervisor import Inbox, supervise
from pipeline.work import CANCELLED, IN_PROGRESS, OpenRun, check, refresh_report, write_report

_LOG = "pipeline.log"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NEEDED = ("kfp", "torch", "diffusers", "transformers", "deepspeed", "sklearn")


class _Log(NamedTuple):
    """The file that gets every line, and its path or URL for a person."""

    file: TextIO
    path: str


def run_here(recipe: str, workdir: str, source: str, overrides: Sequence[str], console: Console) -> None:
    """Run the whole pipeline on this machine, and show how it goes and what comes out; raises as `run_settings`."""
    run_settings(resolve(recipe, overrides, source), workdir, console)


def run_settings(settings: RunConfig, workdir: str, console: Console) -> None:
    """Run the whole pipeline with these settings.

    Raises:
        ConfigError: Before anything is started, for wrong settings and for a workdir that cannot be used.
        DataError: Before anything is started, if there is no such source.
        LeaseHeld: If another process runs the same run there.
        StorageError: If the workdir cannot be written.
        Preempted: If it was asked to stop.
        DarkroomError: What ended the step that failed, with its exit code.
    """
    began = time.monotonic()
    _check_packages()
    run = OpenRun(settings, open_workdir(workdir))
    _check_source(settings)
    with console.status("checking models and settings"):
        check(run, "here")
    display, inbox = RunDisplay(console), SimpleQueue[str | int | None]()
    lease = acquire(run.folder, PIPELINE, run.run)
    with lease.kept(lambda: inbox.put(signal.SIGKILL)), _open_log(run) as log:
        remember(run.workdir.url, run.run)
        display.print_line(f"{run.run} in {_shown(run.workdir.url)}", "bold")
        _begin(run)
        with display:
            progress, error = _follow(run, log, display, inbox)
        lease.confirm()
        report = _report(run, progress, error)
    if error is not None:
        error.args = (f"{error}\nlog     {log.path}\nreport  {report}",)
        raise error
    display.close(run.folder.read_json("report.json"), progress.seconds(), time.monotonic() - began)
    display.print_line(f"report            {report}")


def _check_source(settings: RunConfig) -> None:
    """Check that the source exists, before a folder is made for the run.

    Raises:
        ConfigError: If it is an example that does not exist.
        DataError: If it is a local folder that does not exist.
        ConfigError: If two of several are the same place, or one lies within another.
    """
    for place in settings.ingest.places:
        if place.startswith(EXAMPLE):
            open_source(place)
            continue
        folder = open_storage(place).local_path()
        if folder is not None and not folder.exists():
            raise DataError(
                f"source {folder} does not exist; give the folder with the images (--source, ingest.source)"
            )
    if settings.ingest.sources:
        open_places(settings.ingest.places)


def _check_packages(names: Sequence[str] = _NEEDED) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}; install darkroom[pipeline,train] (make install)")


def open_workdir(workdir: str) -> Storage:
    """Open the storage of a run on this machine.

    Raises:
        ConfigError: If the steps, which are processes of their own, could not use it.
    """
    storage = open_storage(workdir)
    folder = storage.local_path()
    if folder is None and not storage.url.startswith("s3://"):
        raise ConfigError(f"--workdir {workdir}: each step is a process of its own; expected a folder or s3://…")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--workdir {workdir}: this is not a folder; expected one, or a name that is free")
    try:
        workdir.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"--workdir {workdir!a}: Kubeflow only takes names that are valid Unicode") from None
    return storage


@contextlib.contextmanager
def _open_log(run: OpenRun) -> Iterator[_Log]:
    """Open the run's log in the run's folder; if that is not local, in a temporary one that is copied at the end.

    Raises:
        StorageError: If it cannot be written.
    """
    local = run.folder.local_path(_LOG)
    with contextlib.ExitStack() as stack:
        path = local or stack.enter_context(scratch_folder("log")) / _LOG
        with explained(f"write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace"))
        try:
            yield _Log(file, _shown(str(local) if local else f"{run.folder.url}/{_LOG}"))
        finally:
            if local is None:
                with contextlib.suppress(StorageError):  # what ended the run is worth more than its log
                    run.folder.upload(_LOG, path)


def _begin(run: OpenRun) -> None:
    """Delete what an earlier invocation of the same run recorded, and find out whether the workdir can be written."""
    run.folder.delete_tree("steps")
    run.folder.write_json("config.json", run.settings.model_dump(mode="json"))


def _follow(
    run: OpenRun, log: _Log, display: RunDisplay, inbox: Inbox
) -> tuple[PipelineProgress, DarkroomError | None]:
    """Run the pipeline in a process of its own; return how it went and what ended it."""
    progress = PipelineProgress()
    quiet = Progress(io.StringIO())
    refresher = ReportRefresher(lambda: refresh_report(run, IN_PROGRESS, quiet))

    def on_line(line: str) -> None:
        log.file.write(without_credentials(_COLOUR.sub("", line)))
        event = read_event(line)
        if event is None:
            progress.add_line(line)
        else:
            progress.add_event(event)
            display.show(event)
            refresher.refresh()

    def on_stop() -> None:
        display.print_line("stopping as soon as the state is saved; Ctrl-C again stops at once", "yellow")

    log.file.write(f"\n=== {run.run}, {time.strftime('%Y-%m-%d %H:%M:%S %z')} ===\n")
    with refresher, scratch_folder("run") as scratch:
        # As it was resolved here, so that an edit of the recipe cannot make the steps disagree.
        recipe = scratch / "recipe.yaml"
        recipe.write_text(to_yaml(run.settings), encoding="utf-8")
        command = [sys.executable, "-m", "pipeline.local.dag_process", "--recipe", str(recipe)]
        command += ["--workdir", run.workdir.url, "--scratch", str(scratch)]
        code, stopped = supervise(command, os.environ, on_line, lambda: bool(progress.running), on_stop, inbox)
    if refresher.has_begun:  # one may have been written after the pipeline's own
        progress.reported = False
    if stopped and code != 0:
        return progress, Preempted(f"stopped; the same command continues, or darkroom resume {run.run}")
    return progress, progress.failure(code)


def _report(run: OpenRun, progress: PipelineProgress, error: DarkroomError | None) -> str:
    """Return where the report is; it is written here if the pipeline's own step did not get to it."""
    if isinstance(error, Preempted) or not progress.reported:
        status = "SUCCEEDED" if error is None else CANCELLED if isinstance(error, Preempted) else "FAILED"
        try:
            write_report(run, status, Progress(io.StringIO()))
        except DarkroomError as problem:
            return f"could not be written: {problem}"
    return _shown(f"{run.folder.url}/report.html")


def _shown(path: str) -> str:
    """Return a path as a person types it: relative if it lies below the current folder."""
    with contextlib.suppress(ValueError):
        return str(Path(path).relative_to(Path.cwd()))
    return path
