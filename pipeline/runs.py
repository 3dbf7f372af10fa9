"""Running the pipeline: on this machine through ``kfp.local``; compiled for a cluster."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from components.errors import ConfigError, DarkroomError, StorageError
from components.progress import Progress
from components.storage import Storage, open_storage
from pipeline.config import RunConfig, resolve
from pipeline.narrator import Narrator, closing_table

# Any name serves where steps run as processes; kfp warns of images whose name does not say Python.
_HERE = "python-on-this-machine"


def run_here(recipe: str, workdir: str, source: str, overrides: Sequence[str], console: Console) -> Path | str:
    """Run the whole pipeline on this machine.

    Returns:
        Where the report is.

    Raises:
        DarkroomError: What ended the step that failed.
    """
    config = resolve(recipe, overrides, source)
    storage = open_storage(workdir)
    local = storage.local_path()
    if local is None:
        raise ConfigError(f"--workdir {workdir}: a run on this machine needs a local folder")
    _write_example(config, console)
    folder = local / "runs" / config.run
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}; choose another --workdir") from None
    console.print(f"run [bold]{config.run}[/bold] in {local}", highlight=False)
    _run_dag(recipe, str(local), source, list(overrides), folder, console)
    return _close(storage.child(f"runs/{config.run}"), folder, console)


def compile_to(recipe: str, target: Path, image: str, retries: int) -> None:
    """Write the pipeline as KFP's intermediate representation, with a recipe as its default."""
    from kfp import compiler

    from pipeline.dag import build

    resolve(recipe)
    compiler.Compiler().compile(
        build(image, retries), str(target), pipeline_parameters={"recipe": recipe, "workdir": "s3://bucket/darkroom"}
    )


def _write_example(config: RunConfig, console: Console) -> None:
    if config.example == "digits" and not Path(config.ingest.source).exists():
        from components.ingest.digits import write_digits

        written = write_digits(open_storage(config.ingest.source), Progress(io.StringIO()))
        console.print(f"wrote {written} images of handwritten digits to {config.ingest.source}", highlight=False)


def _run_dag(recipe: str, workdir: str, source: str, overrides: list[str], folder: Path, console: Console) -> None:
    from kfp import local

    from pipeline.dag import build

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=False)
    with Narrator(console, folder / "pipeline.log") as narrator, contextlib.redirect_stdout(narrator):
        build(_HERE, retries=0)(recipe=recipe, workdir=workdir, source=source, overrides=overrides)


def _close(run: Storage, folder: Path, console: Console) -> Path:
    """Tell how the run ended; raise what ended it, if anything did."""
    for entry in run.list("steps/"):
        record: dict[str, Any] = run.read_json(entry.key)
        if record["status"] == "failed":
            error = DarkroomError(f"{record['step']}: {record['error']}")
            error.exit_code = record["exit_code"]
            raise error
    numbers = run.read_json("report.json")
    console.print(closing_table(numbers))
    return folder / "report.html"
