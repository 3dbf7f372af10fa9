"""What each step does once it runs: unpack the settings, do the step's declared work, keep a record of how it went.

The record, ``runs/<run>/steps/<step>.json``, is what the report reads. It is written when a step starts, so that a step
whose process is killed leaves one, too. No step is named here: each declares itself in ``components/<step>``.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.command import Result, Step, load_step, load_steps
from components.digests import short
from components.errors import DarkroomError, Preempted, StorageError
from components.image.partition import groups_of_lane, lane_names
from components.image.records import read_manifest
from components.image.union_source import open_places
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.config import RunConfig, resolve_parameters
from pipeline.cost.stored_plan import store_plan
from pipeline.launch.checks import demands, preflight

LogMetric = Callable[[str, float], None]

DONE, FAILED, STOPPED, RUNNING = "done", "failed", "stopped", "running"
# The states of a pipeline that Kubeflow does not report itself.
CANCELLED, IN_PROGRESS = "CANCELLED", "RUNNING"
SUCCEEDED = "SUCCEEDED"
STOPPED_BY_HAND = "stopped by hand; what is finished is kept"
DIED = "its process ended without a word: it was killed, or ran out of memory; the log may tell more"


@dataclass(frozen=True)
class OpenRun:
    """A resolved run and the workdir that it is kept in."""

    settings: RunConfig
    workdir: Storage

    @property
    def run(self) -> str:
        """The run's name."""
        return self.settings.run

    @property
    def folder(self) -> Storage:
        """The run's own folder."""
        return self.workdir.child(f"runs/{self.run}")

    @property
    def source_id(self) -> str:
        """The name under which the workdir keeps what ingest listed."""
        config = self.settings.ingest
        return config.records_id([source.url for source in open_places(config.places)])

    @property
    def caption_set(self) -> str:
        """The name under which the workdir keeps the source's captions as these settings make them."""
        return f"{self.source_id}/{self.settings.caption_key}"

    def encoding_key(self, base: Path) -> str:
        """Return the name of the encoding that a base model's folder gives with the run's settings."""
        from components.latents.encoding_key import encoding_key

        return encoding_key(base, self.settings.latents)


@dataclass(frozen=True)
class WorkingStep(OpenRun):
    """What a step is given while it works; see `components.command.StepRun`."""

    progress: Progress
    inputs: Mapping[str, str]
    group: str = ""


class StepProgress(Progress):
    """Progress of one step, whose name is in every event: steps that run side by side share one log."""

    def __init__(self, step: str, lane: str | None = None) -> None:
        super().__init__()
        self._by = step if lane is None else f"{step} {lane}"

    def event(self, event: str, **fields: Any) -> None:
        """Report one event of the step."""
        super().event(event, by=self._by, **fields)


def open_run(config: str) -> OpenRun:
    """Return the run that `configure` described."""
    described = json.loads(config)
    workdir = open_storage(described["workdir"])
    return OpenRun(RunConfig.parse(workdir.read_json(described["settings"])), workdir)


def check(run: OpenRun, where: preflight.Where) -> None:
    """Check a run before its first costly second.

    Raises:
        ConfigError: With all problems that were found.
    """
    preflight.check_settings(WorkingStep(run.settings, run.workdir, StepProgress("configure"), {}), run.settings, where)


def configure(
    recipe: str,
    workdir: str,
    source: str,
    overrides: Sequence[str],
    cluster: Sequence[str] = (),
    pods: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Resolve and check the settings of a run and write them down; returns what every later step is given, as JSON.

    Text, because Kubeflow's own structures know neither null nor integers beyond 2⁵³.

    Args:
        recipe: The pipeline's parameters, as `pipeline.config.resolve_parameters` reads them.
        workdir: Holds everything.
        source: Another parameter.
        overrides: Another parameter.
        cluster: Settings of the cluster.
        pods: What the pods of this version of the pipeline have, which its steps run in; none on one machine.

    Raises:
        ConfigError: If they are wrong, if a model that they name cannot be had, or if the pods are too little.
    """
    run = OpenRun(resolve_parameters(recipe, source, overrides, cluster), open_storage(workdir))
    demands.check_pods(pods or {}, run.settings)
    check(run, "pod")
    # What an earlier invocation of this run recorded is not part of this one.
    run.folder.delete_tree("steps")
    described = run.settings.model_dump(mode="json")
    run.folder.write_json("config.json", described)
    store_plan(run.settings, run.workdir)
    # Their place, not the settings themselves: a step gets what it needs as arguments of its process, which every user
    # of a machine can list. The name is made of the content, since config.json may be written again.
    key = f"runs/{run.run}/settings/{short(described)}.json"
    run.workdir.write_json(key, described)
    return json.dumps({"settings": key, "workdir": workdir})


def lanes(config: str) -> list[str]:
    """Return the names of the lanes, each of which has its share of the partition groups."""
    return list(lane_names(open_run(config).settings.ingest.lanes))


def run_step(
    name: str,
    config: str,
    inputs: Mapping[str, str] | None = None,
    lane: str | None = None,
    pages: Mapping[str, str] | None = None,
    log_metric: LogMetric | None = None,
) -> Result:
    """Do the work of a step, as ``components/<step>/declaration.py`` says, and keep a record of how it went.

    Args:
        name: The step's name.
        config: As `configure` returned it.
        inputs: What earlier steps gave, by name.
        lane: The lane whose groups it works on, for a step that works group by group.
        pages: Files that the dashboard shows, each with the name in the result that holds the page's key.
        log_metric: Receives each number that the dashboard shows.

    Returns:
        The step's result.
    """
    step, run = load_step(name), open_run(config)

    def work(progress: Progress) -> Result:
        return _work(step, WorkingStep(run.settings, run.workdir, progress, inputs or {}), lane)

    result = recorded(run, name, work, lane)
    for key, file in (pages or {}).items():
        Path(file).write_bytes(run.workdir.read(result[key]))
    if log_metric is not None:
        for metric, value in step.metrics(result).items():
            log_metric(metric, value)
    return result


def _work(step: Step, work: WorkingStep, lane: str | None) -> Result:
    """Do a step's work; of the groups of a lane one after the other, and return the sums of their whole numbers."""
    if step.is_launched:
        return _launch(work)
    assert step.run is not None, f"{step.name} declares no work"
    if not step.per_group:
        result = step.run(work)
        if step.lists_images:
            _check_images(work)
        return result
    assert lane is not None, f"{step.name} works on the groups of a lane"
    groups = groups_of_lane(read_manifest(work.workdir, work.source_id).groups, lane, work.settings.ingest.lanes)
    sums: Counter[str] = Counter()
    for group in groups:
        result = step.run(replace(work, group=group))
        sums.update({name: value for name, value in result.items() if isinstance(value, int)})
    return {"groups": len(groups), **sums}


def _check_images(work: WorkingStep) -> None:
    """Check the run against its images before anything costly is done with them."""
    warning = preflight.check_images(work, work.settings)
    if warning is not None:
        work.progress.event("warning", text=warning)


def _launch(work: WorkingStep) -> Result:
    """Train, in this pod or on the cluster."""
    from pipeline.launch import local_launcher
    from pipeline.launch.context import LaunchContext

    base_model, encoding_key, dataset = (work.inputs[name] for name in ("base_model", "encoding_key", "dataset"))
    context = LaunchContext(work.settings, work.workdir, base_model, encoding_key, dataset, work.progress)
    # Later steps work with the version that was trained on, even if a newer one is committed meanwhile.
    trained_on = {"dataset_digest": dataset}
    if work.settings.launch.where == "local":
        return {**local_launcher.launch(context), **trained_on}
    from pipeline.cost.prices import prices_by_pool
    from pipeline.launch import cluster_launcher

    placement = work.settings.placement
    context = replace(context, prices=prices_by_pool(placement.prices, placement.instance))
    try:
        return {**cluster_launcher.launch(context), **trained_on}
    except Preempted:
        _report_stop(work)
        raise


def _report_stop(work: WorkingStep) -> None:
    """Write the report of a run that is stopped: Kubeflow may cut off the step that does so otherwise."""
    try:
        write_report(work, CANCELLED, work.progress)
    except Exception as error:  # the training was stopped, and that is what counts
        work.progress.event("warning", text=f"the report was not written: {error}")


def recorded(run: OpenRun, step: str, work: Callable[[Progress], Result], lane: str | None = None) -> Result:
    """Do a step's work and keep a record of how it went.

    Args:
        run: The run.
        step: The step's name.
        work: What it does; it imports what it needs, so that an import that fails is on record, too.
        lane: The lane of partition groups, if the step works on one.

    Returns:
        The work's result.

    Raises:
        Preempted: If the process was asked to stop and the work did not handle that itself.
        Exception: What the work raised.
    """
    progress = StepProgress(step, lane)
    key = f"steps/{step if lane is None else f'{step}-{lane}'}.json"
    record: dict[str, Any] = {"step": step, "group": lane, "status": RUNNING, "started": time.time()}
    record |= {"seconds": 0.0, "result": None, "error": None, "exit_code": None}
    run.folder.write_json(key, record)
    progress.event("step-started", step=step, group=lane)
    began = time.monotonic()
    try:
        with _stoppable():
            result = work(progress)
        record |= {"status": DONE, "result": result, "seconds": round(time.monotonic() - began, 3)}
        run.folder.write_json(key, record)
    except Exception as error:
        status = STOPPED if isinstance(error, Preempted) else FAILED
        record |= {"status": status, "result": None, "seconds": round(time.monotonic() - began, 3)}
        record |= _error_fields(error)
        with contextlib.suppress(StorageError):  # what went wrong is worth more than the record of it
            run.folder.write_json(key, record)
        raise
    finally:
        progress.event("step-ended", **record)
    return result


def report(settings: RunConfig, workdir: str, status: str, page: str, summary: str, log_metric: LogMetric) -> None:
    """Write the report, and what the dashboard shows of it.

    It takes the settings, not what `configure` returned, which may be what failed.
    """
    from components.report.summary import markdown

    run = OpenRun(settings, open_storage(workdir))
    result = write_report(run, _status_by_our_books(run, status), StepProgress("report"))
    Path(page).write_bytes(run.workdir.read(result["report"]))
    Path(summary).write_text(markdown(run.workdir.read_json(result["numbers"])), encoding="utf-8")
    for name, value in load_step("report").metrics(result).items():
        log_metric(name, value)


def _status_by_our_books(run: OpenRun, status: str) -> str:
    """Return how the pipeline ended: Kubeflow has called runs succeeded that had failed (kubeflow/pipelines#11405).

    The training must be done. What comes after it is on record only once it has begun, and its own records tell.
    """
    key = next(f"steps/{step.name}.json" for step in load_steps().values() if step.is_launched)
    if status == SUCCEEDED and (not run.folder.exists(key) or run.folder.read_object(key, "status")["status"] != DONE):
        return "FAILED"
    return status


def write_report(run: OpenRun, status: str, progress: Progress) -> Result:
    """Write the report of a run in which no step is running any more; returns what `components.report` does."""
    with contextlib.suppress(DarkroomError):  # the report says itself what it cannot read
        for entry in run.folder.list("steps"):
            record = run.folder.read_object(entry.key, "status")
            if record["status"] == RUNNING:
                end = (STOPPED, STOPPED_BY_HAND) if status == CANCELLED else (FAILED, DIED)
                run.folder.write_json(entry.key, {**record, "status": end[0], "error": end[1]})
    return refresh_report(run, status, progress)


def refresh_report(run: OpenRun, status: str, progress: Progress) -> Result:
    """Write the report of a run, in which steps may be running; returns what `components.report` does."""
    return _work(load_step("report"), WorkingStep(run.settings, run.workdir, progress, {"status": status}), None)


def _error_fields(error: Exception) -> dict[str, Any]:
    if isinstance(error, DarkroomError):
        return {"error": str(error), "exit_code": error.exit_code}
    return {"error": f"{type(error).__name__}: {error}", "exit_code": DarkroomError.exit_code}


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into `Preempted`, so that a step that is stopped says so; training has its own way."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Preempted("asked to stop; what is finished is kept, start again to continue") from None
    finally:
        signal.signal(signal.SIGTERM, before)
