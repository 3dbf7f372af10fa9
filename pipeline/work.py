"""What each step does once it runs: unpack the settings, call the component, keep a record of how it went.

The record, ``runs/<run>/steps/<step>.json``, is what the report reads; it is written when a step fails, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DarkroomError
from components.progress import Progress
from components.sources import open_source
from components.storage import Storage, open_storage
from pipeline.config import RunConfig, resolve

Log = Callable[[str, float], None]


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
    return json.dumps({"settings": described, "workdir": workdir})


def ingest(config: str) -> list[str]:
    """List the images; returns the names of the groups."""
    from components.ingest.intake import ingest as work

    job = open_job(config)
    result = _recorded(job, "ingest", lambda progress: work(job.settings.ingest, job.workdir, progress))
    return list(result["groups"])


def autoencoder(config: str) -> tuple[str, str]:
    """Provide the base model; returns its name and the key of the encoding that it gives."""
    from components.autoencoder.base import ensure_base
    from components.latents.encoding import encoding_key
    from components.models import fetch

    job = open_job(config)
    settings = job.settings

    def work(progress: Progress) -> dict[str, Any]:
        held_out = settings.index.held_out
        base = ensure_base(settings.model, settings.seed, job.source_id, held_out, job.workdir, progress)
        return {**base, "encoding_key": encoding_key(fetch(base["base_model"], job.workdir), settings.latents)}

    result = _recorded(job, "autoencoder", work)
    return result["base_model"], result["encoding_key"]


def caption(config: str, encoding_key: str, group: str) -> str:
    """Caption one group; returns its name."""
    from components.caption.captioning import caption as work

    job = open_job(config)
    settings = job.settings
    _recorded(
        job,
        "caption",
        lambda progress: work(
            settings.caption, settings.ingest.limits, group, job.source_id, encoding_key, job.workdir, progress
        ),
        group,
    )
    return group


def latents(config: str, encoding_key: str, base_model: str, group: str) -> str:
    """Encode one group; returns its name."""
    from components.latents.group import encode as work

    job = open_job(config)
    _recorded(
        job,
        "latents",
        lambda progress: work(
            job.settings.latents, group, job.source_id, encoding_key, base_model, job.workdir, progress
        ),
        group,
    )
    return group


def index(config: str, encoding_key: str, groups: list[str]) -> str:
    """Commit the dataset; returns its digest."""
    from components.index.versions import index as work

    job = open_job(config)

    def index_groups(progress: Progress) -> dict[str, Any]:
        result = work(job.settings.index, job.source_id, groups, encoding_key, job.workdir, progress)
        return {**result, "encoding_key": encoding_key}

    return str(_recorded(job, "index", index_groups)["dataset_digest"])


def train(config: str, encoding_key: str, base_model: str, dataset: str) -> int:
    """Train here, in processes of this machine; returns the last optimizer step."""
    from pipeline.launch.local import launch

    job = open_job(config)
    result = _recorded(
        job,
        "train",
        lambda progress: launch(job.settings, job.workdir, base_model, encoding_key, dataset, progress),
    )
    return int(result["step"])


def evaluate(config: str, encoding_key: str, base_model: str, log: Log) -> bool:
    """Measure the model; returns whether it beats the champion."""
    from components.evaluate.evaluation import evaluate as work

    job = open_job(config)
    settings = job.settings
    result = _recorded(
        job,
        "evaluate",
        lambda progress: work(
            settings.evaluate,
            settings.name,
            job.source_id,
            encoding_key,
            base_model,
            settings.run,
            job.workdir,
            progress,
        ),
    )
    for name in ("prompt_accuracy", "frechet_distance"):
        if result.get(name) is not None:
            log(name, result[name])
    return bool(result["better"])


def publish(config: str, base_model: str) -> str:
    """Publish the model; returns its folder below the workdir."""
    from components.publish.publishing import publish as work

    job = open_job(config)
    settings = job.settings
    result = _recorded(
        job,
        "publish",
        lambda progress: work(settings.publish, settings.name, settings.run, base_model, job.workdir, progress),
    )
    return str(result["published"])


def report(
    recipe: str, workdir: str, source: str, overrides: list[str], status: str, page: str, summary: str, log: Log
) -> None:
    """Write the report, and what the dashboard shows of it."""
    from components.report.reporting import report as work
    from components.report.summary import markdown

    settings = resolve(recipe, overrides, source)
    job = Job(settings, open_storage(workdir))
    result = work(settings.report, settings.run, status, job.workdir, Progress())
    Path(page).write_bytes(job.workdir.read(result["report"]))
    Path(summary).write_text(markdown(job.workdir.read_json(result["numbers"])), encoding="utf-8")
    for name, value in result["metrics"].items():
        log(name, value)


def _recorded(
    job: Job, step: str, work: Callable[[Progress], dict[str, Any]], group: str | None = None
) -> dict[str, Any]:
    progress = Progress()
    progress.event("step-started", step=step, group=group)
    record: dict[str, Any] = {"step": step, "group": group, "started": time.time(), "result": None, "error": None}
    began = time.monotonic()
    try:
        record["result"] = work(progress)
        record["status"] = "done"
    except Exception as error:
        record["status"] = "failed"
        record["error"] = str(error) or repr(error)
        record["exit_code"] = error.exit_code if isinstance(error, DarkroomError) else DarkroomError.exit_code
        raise
    finally:
        record["seconds"] = round(time.monotonic() - began, 3)
        name = step if group is None else f"{step}-{group}"
        job.run.write_json(f"steps/{name}.json", record)
        progress.event("step-ended", **{key: record.get(key) for key in ("step", "group", "status", "seconds")})
    return dict(record["result"])
