"""The report of one run: read its records, count, draw, write one page and one file of numbers."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

from components.progress import Progress
from components.report.account import account
from components.report.config import ReportConfig
from components.report.gallery import read_gallery
from components.report.page import page
from components.report.records import read_records
from components.report.summary import metrics
from components.storage.base import Storage

PACKAGES = (
    "darkroom", "torch", "deepspeed", "diffusers", "transformers", "accelerate", "safetensors", "webdataset",
    "numpy", "pillow", "kfp",
)  # fmt: skip


def report(config: ReportConfig, run: str, status: str, workdir: Storage, progress: Progress) -> dict[str, Any]:
    """Write ``report.html`` and ``report.json`` of a run, however it ended and whatever is missing.

    Args:
        config: How much the page shows.
        run: Name of the run, the folder below ``runs/``.
        status: How the pipeline ended, such as ``SUCCEEDED`` or ``FAILED``.
        workdir: Holds the run; only ``runs/<run>/report.html`` and ``report.json`` are written.
        progress: Receives an event once both files are written.

    Returns:
        The keys of the two files, the status, and the numbers that dashboards plot.

    Raises:
        StorageError: If the two files cannot be written.
    """
    records = read_records(workdir, run)
    folder = workdir.child(f"runs/{run}")
    gallery = read_gallery(folder, records.samples, records.evaluation, config)
    numbers = account(records, status, versions())
    # Not sorted: the order of the steps is worth keeping.
    folder.write("report.json", json.dumps(numbers, indent=1, allow_nan=False).encode())
    folder.write("report.html", page(numbers, records, gallery, config).encode())
    keys = {"report": f"runs/{run}/report.html", "numbers": f"runs/{run}/report.json"}
    progress.event("reported", **keys)
    return {**keys, "status": numbers["status"], "metrics": metrics(numbers)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide what a run computes."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
