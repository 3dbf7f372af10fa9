"""What each step does once it runs: unpack the settings, call the component, keep a record of how it went.

The record, ``runs/<run>/steps/<step>.json``, is what the report reads. It is there from a step's start, so that a step
whose process is killed leaves one, too.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from components.errors import DarkroomError, Preempted, StorageError
from components.image.records import groups_of_lane, lane_names, read_manifest
from components.image.sources import open_source
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.config import RunConfig, resolve
from pipeline.cost.verbs import store_plan

Log = Callable[[str, float], None]

DONE, FAILED, RUNNING = "done", "failed", "running"
DIED = "its process ended without a word: it was killed, or ran out of memory; the log may tell more"


@dataclass(frozen=True)
class Job:
    """A resolved run and the place where it keeps its things."""

    settings: RunConfig
    workdir: Storage

    @property
    def source_id(self) -> str:
        """The name under which the workdir keeps what ingest found."""
        return open_source(self.settings.ingest.source).id

    @property
    def run(self) -> Storage:
        """The run's own folder."""
        return self.workdir.child(f"runs/{self.settings.run}")


class StepProgress(Progress):
    """Progress of one step, whose name is in every event: steps that run side by side share one log."""

    def __init__(self, step: str, group: str | None = None) -> None:
        super().__init__()
        self._by = step if group is None else f"{step} {group}"

    def event(self, event: str, **fields: Any) -> None:
        """Tell one thing that happened in the step."""
        super().event(event, by=self._by, **fields)


def open_job(config: str) -> Job:
    """Return the job that `configure` described."""
    described = json.loads(config)
    return Job(RunConfig.parse(described["settings"]), open_storage(described["workdir"]))


def configure(recipe: str, workdir: str, source: str, overrides: list[str]) -> str:
    """Resolve the settings of a run and write them down; returns what every later step is given, as JSON.

    Text, because Kubeflow's own structures know neither null nor integers beyond 2⁵³.
    """
    settings = resolve(recipe, overrides, source)
    job = Job(settings, open_storage(workdir))
    # What an earlier invocation of this run recorded is not part of this one.
    job.run.delete_tree("steps")
    described = settings.model_dump(mode="json")
    job.run.write_json("config.json", described)
    store_plan(settings, job.workdir)
    return json.dumps({"settings": described, "workdir": workdir})


def recorded(
    job: Job, step: str, work: Callable[[Progress], dict[str, Any]], group: str | None = None
) -> dict[str, Any]:
    """Do a step's work and keep a record of how it went.

    Args:
        job: The run.
        step: The step's name.
        work: What it does; it imports what it needs, so that an import that fails is on record, too.
        group: The lane of partition groups, where the step works on one.

    Returns:
        The work's result.

    Raises:
        Preempted: Where the process was asked to stop and the work had no answer of its own to that.
        Exception: What the work raised.
    """
    progress = StepProgress(step, group)
    key = f"steps/{step if group is None else f'{step}-{group}'}.json"
    record: dict[str, Any] = {"step": step, "group": group, "status": RUNNING, "started": time.time()}
    record |= {"seconds": 0.0, "result": None, "error": None, "exit_code": None}
    job.run.write_json(key, record)
    progress.event("step-started", step=step, group=group)
    began = time.monotonic()
    try:
        with _stoppable():
            result = work(progress)
        record |= {"status": DONE, "result": result, "seconds": round(time.monotonic() - began, 3)}
        job.run.write_json(key, record)
    except Exception as error:
        record |= {"status": FAILED, "result": None, "seconds": round(time.monotonic() - began, 3), **_told(error)}
        with contextlib.suppress(StorageError):  # what went wrong is worth more than the record of it
            job.run.write_json(key, record)
        raise
    finally:
        progress.event("step-ended", **record)
    return result


def ingest(config: str) -> list[str]:
    """List the images; returns the names of the lanes, each of which has its share of the partition groups."""
    job = open_job(config)

    def work(progress: Progress) -> dict[str, Any]:
        from components.ingest.intake import ingest

        return ingest(job.settings.ingest, job.workdir, progress)

    recorded(job, "ingest", work)
    return list(lane_names(job.settings.ingest.lanes))


def autoencoder(config: str) -> tuple[str, str]:
    """Provide the base model; returns its name and the key of the encoding that it gives."""
    job = open_job(config)
    settings = job.settings

    def work(progress: Progress) -> dict[str, Any]:
        from components.autoencoder.base import ensure_base
        from components.latents.encoding import encoding_key
        from components.model.locations import fetch

        held_out = settings.index.held_out
        base = ensure_base(settings.model, settings.seed, job.source_id, held_out, job.workdir, progress)
        return {**base, "encoding_key": encoding_key(fetch(base["base_model"], job.workdir), settings.latents)}

    result = recorded(job, "autoencoder", work)
    return result["base_model"], result["encoding_key"]


def caption(config: str, encoding_key: str, lane: str) -> str:
    """Caption one lane's groups; returns its name."""
    job = open_job(config)
    settings = job.settings

    def work(group: str, progress: Progress) -> dict[str, Any]:
        from components.caption.group import caption

        limits = settings.ingest.limits
        return caption(settings.caption, limits, group, job.source_id, encoding_key, job.workdir, progress)

    recorded(job, "caption", partial(_each_group, job, lane, work), lane)
    return lane


def clean(config: str, encoding_key: str, lanes: list[str], page: str, summary: str) -> list[str]:
    """Leave images out once all are known, and write what the dashboard shows of the data; returns the lanes."""
    job = open_job(config)
    settings = job.settings

    def work(progress: Progress) -> dict[str, Any]:
        from components.clean.cleaning import clean

        groups = read_manifest(job.workdir, job.source_id).groups
        filters = settings.caption.filters
        return clean(settings.clean, filters, job.source_id, groups, encoding_key, job.workdir, progress)

    result = recorded(job, "clean", work)
    Path(page).write_bytes(job.workdir.read(result["report"]))
    Path(summary).write_bytes(job.workdir.read(result["summary"]))
    return lanes


def latents(config: str, encoding_key: str, base_model: str, lane: str) -> str:
    """Encode one lane's groups; returns its name."""
    job = open_job(config)

    def work(group: str, progress: Progress) -> dict[str, Any]:
        from components.latents.group import encode

        return encode(job.settings.latents, group, job.source_id, encoding_key, base_model, job.workdir, progress)

    recorded(job, "latents", partial(_each_group, job, lane, work), lane)
    return lane


def _each_group(
    job: Job, lane: str, work: Callable[[str, Progress], dict[str, Any]], progress: Progress
) -> dict[str, Any]:
    """Do a step's work for each group of a lane, one after the other; returns the sums of its whole numbers."""
    groups = groups_of_lane(read_manifest(job.workdir, job.source_id).groups, lane, job.settings.ingest.lanes)
    sums: Counter[str] = Counter()
    for group in groups:
        result = work(group, progress)
        sums.update({name: value for name, value in result.items() if isinstance(value, int)})
    return {"groups": len(groups), **sums}


def index(config: str, encoding_key: str) -> str:
    """Commit the dataset that all groups make together; returns its digest."""
    job = open_job(config)

    def work(progress: Progress) -> dict[str, Any]:
        from components.index.versions import index

        groups = read_manifest(job.workdir, job.source_id).groups
        return index(job.settings.index, job.source_id, groups, encoding_key, job.workdir, progress)

    return str(recorded(job, "index", work)["dataset_digest"])


def train(config: str, encoding_key: str, base_model: str, dataset: str) -> int:
    """Train, here or on the cluster; returns the last optimizer step."""
    job = open_job(config)

    def work(progress: Progress) -> dict[str, Any]:
        from pipeline.launch import local_launcher
        from pipeline.launch.context import LaunchContext

        context = LaunchContext(job.settings, job.workdir, base_model, encoding_key, dataset, progress)
        if job.settings.launch.where == "local":
            return local_launcher.launch(context)
        from pipeline.cost.prices import known_prices
        from pipeline.launch import cluster_launcher

        placement = job.settings.placement
        prices = known_prices(placement.prices, placement.instance)
        return cluster_launcher.launch(replace(context, prices=prices))

    return int(recorded(job, "train", work)["step"])


def evaluate(config: str, encoding_key: str, base_model: str, log: Log) -> bool:
    """Measure the model; returns whether it beats the champion."""
    job = open_job(config)
    settings = job.settings

    def work(progress: Progress) -> dict[str, Any]:
        from components.evaluate.evaluation import evaluate

        where = (job.source_id, encoding_key, base_model, settings.run, job.workdir)
        return evaluate(settings.evaluate, settings.name, *where, progress)

    result = recorded(job, "evaluate", work)
    for name, metric in result["metrics"].items():
        if metric["value"] is not None:
            log(name, metric["value"])
    return bool(result["better"])


def publish(config: str, base_model: str) -> str:
    """Publish the model; returns its folder below the workdir."""
    job = open_job(config)
    settings = job.settings

    def work(progress: Progress) -> dict[str, Any]:
        from components.publish.publishing import publish

        return publish(settings.publish, settings.name, settings.run, base_model, job.workdir, progress)

    return str(recorded(job, "publish", work)["published"])


def report(
    recipe: str, workdir: str, source: str, overrides: list[str], status: str, page: str, summary: str, log: Log
) -> None:
    """Write the report, and what the dashboard shows of it."""
    from components.report.summary import markdown

    job = Job(resolve(recipe, overrides, source), open_storage(workdir))
    result = write_report(job, status, StepProgress("report"))
    Path(page).write_bytes(job.workdir.read(result["report"]))
    Path(summary).write_text(markdown(job.workdir.read_json(result["numbers"])), encoding="utf-8")
    for name, value in result["metrics"].items():
        log(name, value)


def write_report(job: Job, status: str, progress: Progress) -> dict[str, Any]:
    """Write the report of a run in which nothing is running any more; returns what `components.report` does."""
    from components.report.reporting import report

    with contextlib.suppress(DarkroomError):  # the report says itself what it cannot read
        for entry in job.run.list("steps"):
            record = job.run.read_json(entry.key)
            if record["status"] == RUNNING:
                job.run.write_json(entry.key, {**record, "status": FAILED, "error": DIED})
    return report(job.settings.report, job.settings.run, status, job.workdir, progress)


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, DarkroomError):
        return {"error": str(error), "exit_code": error.exit_code}
    return {"error": f"{type(error).__name__}: {error}", "exit_code": DarkroomError.exit_code}


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into `Preempted`, so that a step that is stopped says so; training has its own way."""
    kept = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Preempted("asked to stop; what is finished is kept, start again to continue") from None
    finally:
        signal.signal(signal.SIGTERM, kept)
