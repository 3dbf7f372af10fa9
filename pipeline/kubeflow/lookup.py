"""Which run on the cluster a person means, and where its records are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.errors import ConfigError, NotFound
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.config import resolve_parameters
from pipeline.messages import line

if TYPE_CHECKING:  # it takes a second to load
    from pipeline.kubeflow.client import Kubeflow
    from pipeline.kubeflow.records import Run


def find_run(kubeflow: Kubeflow, text: str) -> Run:
    """Return the run with an id or name, or with the beginning of one; of several with the same name, the newest."""
    matches = []
    for run in kubeflow.all_runs():
        if text in (run.id, run.name):
            return kubeflow.run(run.id)
        if run.id.startswith(text) or run.name.startswith(text):
            matches.append(run)
    if len(matches) != 1:
        ids = ", ".join(run.id for run in matches[:5])
        what = f"{text!r} matches several runs: {ids}" if matches else f"no run {text!r} in Kubeflow"
        raise ConfigError(f"{line(what)}; darkroom status lists them")
    return kubeflow.run(matches[0].id)


def folder_of(run: Run, workdir: str) -> Storage:
    """Return the folder of a run, from the parameters that it was started with.

    Raises:
        ConfigError: If its recipe cannot be read here.
    """
    given = run.parameters
    overrides, source = list(given.get("overrides") or ()), str(given.get("source") or "")
    settings = resolve_parameters(str(given.get("recipe", "")), source, overrides)
    url = workdir or str(given.get("workdir") or "")
    if not url:
        raise ConfigError("the run's workdir is a default of the pipeline's version; give it with --workdir")
    folder = open_storage(url).child(f"runs/{settings.run}")
    if not folder.exists("config.json"):
        raise NotFound(f"{folder.url} has no config.json yet")
    return folder
