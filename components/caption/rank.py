"""One of several processes that caption a group; `components.caption.processes` starts them.

    python -m components.caption.rank FOLDER

FOLDER holds the job and takes this rank's outcomes, or its error. The agent sets RANK, LOCAL_RANK and WORLD_SIZE.
Heavy modules are imported only once signals are handled and the watchdog runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from components.caption.config import CaptionConfig
from components.caption.group import SAVE_MODELS_EVERY, saved
from components.caption.job import CaptionJob
from components.caption.processes import JOB_FILE, batches, error_file, outcomes_key, share
from components.caption.resume import write_outcomes
from components.errors import EXIT_DONE, DarkroomError
from components.image.records import ImageOutcome, read_images
from components.processes.stopping import Stopping
from components.processes.watchdog import Watchdog
from components.progress import Progress
from components.storage.open import open_storage

if TYPE_CHECKING:
    from components.caption.models.captioner import Captioner

T = TypeVar("T")


def main(argv: Sequence[str]) -> int:
    """Caption this rank's share and return its exit code."""
    folder, rank, progress = Path(argv[0]), int(os.environ["RANK"]), Progress()
    # It never begins, so a request to stop ends it at once: what it has saved is kept.
    Stopping(lambda event, detail: progress.event(event, rank=rank, why=detail)).listen()
    values = json.loads((folder / JOB_FILE).read_text())
    try:
        job = CaptionJob.from_json(values)
        watchdog = _watchdog(job.config, rank, progress, values["parent"])
        watchdog.start()
        outcomes = _caption(job, values["images"], folder, watchdog, progress)
        write_outcomes(open_storage(str(folder)), outcomes_key(rank), outcomes)
    except DarkroomError as error:
        note = {"exit_code": error.exit_code, "message": str(error)}
        (folder / error_file(rank)).write_text(json.dumps(note))
        return error.exit_code
    return EXIT_DONE


def _watchdog(config: CaptionConfig, rank: int, progress: Progress, parent: int) -> Watchdog:
    advice = "raise caption.hang_seconds or caption.start_seconds"
    return Watchdog(rank, progress, config.start_seconds, config.hang_seconds, parent, step_name="batch", advice=advice)


def _caption(
    job: CaptionJob, images: Sequence[str], folder: Path, watchdog: Watchdog, progress: Progress
) -> list[ImageOutcome]:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    records = read_images(job.workdir, job.source_id, job.group)
    by_digest = {record.sha256: record for record in records}
    image_captions = job.image_captions(records)
    with _first_alone(folder):
        captioner = _captioner(job, progress)
    with ThreadPoolExecutor(job.config.readers) as pool:
        drafts = list(pool.map(image_captions.draft, (by_digest[image] for image in images)))
        mine = share(batches(drafts, job.config.batch_size), rank, world)
        parts = _watched(image_captions.from_models(mine, captioner, pool), watchdog)
        outcomes = saved(parts, job, SAVE_MODELS_EVERY)
        # One line for all ranks: their shares are alike.
        total = sum(len(batch) for batch in mine)
        return list(progress.track(outcomes, "images captioned", total) if rank == 0 else outcomes)


def _captioner(job: CaptionJob, progress: Progress) -> Captioner:
    import torch

    from components.caption.models.captioner import Captioner
    from components.model.locations import select_device

    device = select_device(job.config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)  # the filters' models go to the current one
    return Captioner(job.config, job.workdir, progress, device)


@contextmanager
def _first_alone(folder: Path) -> Iterator[None]:
    """Let the first process load the models alone, which downloads what the others then find, and those all at once."""
    loaded = folder / "loaded"
    with (folder / "loading.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process that dies gives it back
        if loaded.exists():
            fcntl.flock(lock, fcntl.LOCK_UN)
        yield
        loaded.touch()


def _watched(parts: Iterable[T], watchdog: Watchdog) -> Iterator[T]:
    for number, part in enumerate(parts, start=1):
        watchdog.beat(number)
        yield part


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
