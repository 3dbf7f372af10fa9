"""One of several processes that caption a group; ``components.caption.processes`` starts them.

    python -m torch.distributed.run --standalone --nproc-per-node=2 -m components.caption.process job.json

It reads RANK, WORLD_SIZE and their like as torchrun sets them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import PartialState

from components.caption.captioner import Captioner
from components.caption.group import SAVE_MODELS_EVERY, saved
from components.caption.job import Job
from components.caption.processes import made_key
from components.caption.resume import write_outcomes
from components.caption.sharing import batches, share
from components.errors import EXIT_DONE, DarkroomError, Preempted
from components.image.records import ImageOutcome, read_images
from components.model.locations import select_device
from components.progress import Progress
from components.storage.open import open_storage


def main(argv: Sequence[str]) -> int:
    """Caption this process's share; return its exit code."""
    place = Path(argv[0])
    values = json.loads(place.read_text())
    end_with(int(values["parent"]))
    job, images = Job.from_json(values), list(values["images"])
    state = PartialState(cpu=select_device(job.config.device).type == "cpu")
    try:
        outcomes = _caption(job, images, state)
        write_outcomes(open_storage(str(place.parent)), made_key(state.process_index), outcomes)
    except DarkroomError as error:
        note = {"kind": type(error).__name__, "message": str(error)}
        (place.parent / f"error-{state.process_index:03d}.json").write_text(json.dumps(note))
        return error.exit_code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return EXIT_DONE


def end_with(parent: int) -> None:
    """End this process soon after another one is gone, so that nobody goes on for a step that was killed."""

    def watch() -> None:
        with suppress(ProcessLookupError):
            while True:
                os.kill(parent, 0)  # sends nothing, and fails where there is no such process
                time.sleep(1.0)
        os._exit(Preempted.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def _caption(job: Job, images: Sequence[str], state: PartialState) -> list[ImageOutcome]:
    records = read_images(job.workdir, job.source_id, job.group)
    captioning = job.captioning(records)
    known = {record.sha256: record for record in records}
    progress = Progress()
    with state.local_main_process_first():  # which downloads what the others then find
        captioner = Captioner(job.config, job.workdir, progress, state.device)
    with ThreadPoolExecutor(job.config.readers) as pool:
        drafts = list(pool.map(captioning.draft, (known[image] for image in images)))
        mine = share(batches(drafts, job.config.batch_size), state.process_index, state.num_processes)
        outcomes = saved(captioning.by_model(mine, captioner, pool), job, SAVE_MODELS_EVERY)
        total = sum(len(batch) for batch in mine)
        # One line for all of them: their shares are alike.
        told = progress.track(outcomes, "images captioned", total) if state.is_local_main_process else outcomes
        return list(told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
