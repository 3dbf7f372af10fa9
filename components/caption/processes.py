"""Several processes that caption one group, one for each GPU; the agent that starts training's ranks starts them, too.

They exchange nothing while they work. Each captions every n-th batch and saves its outcomes where a step that is
started again finds them: if one dies, the work of the others is not lost.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TypeVar

from components.caption.config import CaptionConfig
from components.caption.job import CaptionJob
from components.caption.resume import read_outcomes
from components.errors import (
    EXIT_DONE,
    ConfigError,
    DarkroomError,
    DataError,
    Hung,
    OutOfMemory,
    Preempted,
    StorageError,
)
from components.image.records import ImageOutcome
from components.processes.agent import Agent, Grace, Signals
from components.processes.node import single_node
from components.progress import Progress
from components.storage.open import open_storage
from components.storage.scratch import scratch_folder

T = TypeVar("T")

JOB_FILE = "job.json"

# A rank that is asked to stop ends at once; one that has finished its share does not hurry the others.
_GRACE = Grace(stop=20.0, crash=5.0, done=inf)
_KINDS = (ConfigError, DataError, StorageError, OutOfMemory, Hung, Preempted)
_MESSAGES = {
    Hung.exit_code: "a captioning process made no batch for too long; its stacks are in the output above. "
    "Start again to continue, or raise caption.hang_seconds if it was only slow",
    Preempted.exit_code: "asked to stop while captioning; what is finished is kept, start again to continue",
}


def count_processes(config: CaptionConfig) -> int:
    """Return how many processes are to caption.

    Raises:
        ConfigError: If there are fewer GPUs, or none although the settings ask for one.
    """
    import torch

    from components.model.locations import select_device

    gpus = torch.cuda.device_count() if select_device(config.device).type == "cuda" else 0
    if gpus and config.processes > gpus:
        raise ConfigError(f"caption.processes is {config.processes}, but there are {gpus} GPUs here; each needs one")
    return config.processes or max(gpus, 1)


def caption_in_processes(
    job: CaptionJob, images: Sequence[str], count: int, progress: Progress
) -> Iterator[ImageOutcome]:
    """Let several processes caption some images of a group, and yield their outcomes.

    Args:
        job: The group; its workdir must be one that other processes can open.
        images: Digests of the images, in the order in which they make batches.
        count: Number of processes.
        progress: Gets the agent's events.

    Raises:
        DarkroomError: If one of them fails: its error, or what its exit code means.
    """
    with scratch_folder("caption") as folder:
        (folder / JOB_FILE).write_text(json.dumps({**job.to_json(), "images": list(images), "parent": os.getpid()}))
        command = [sys.executable, "-m", "components.caption.rank", str(folder)]
        with Signals().listening() as signals:
            code = Agent(command, single_node(count), _GRACE, signals, progress).run()
        if code != EXIT_DONE:
            raise _error(folder, code)
        storage = open_storage(str(folder))
        for rank in range(count):
            yield from read_outcomes(storage, outcomes_key(rank))


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return the items in batches of a size, in order; the last may be smaller.

    They are the same whatever the number of processes that share them.
    """
    return [items[first : first + size] for first in range(0, len(items), size)]


def share(parts: Sequence[T], rank: int, world: int) -> list[T]:
    """Return the parts of one process: every ``world``-th, so that all end at about the same time.

    Args:
        parts: The parts of all processes.
        rank: The process, from 0.
        world: How many processes there are.
    """
    return list(parts[rank::world])


def outcomes_key(rank: int) -> str:
    """Return the name of the file, beside the job's, that takes a rank's outcomes."""
    return f"outcomes-{rank:03d}.jsonl"


def error_file(rank: int) -> str:
    """Return the name of the file, beside the job's, that takes a rank's error."""
    return f"error-{rank:03d}.json"


def _error(folder: Path, code: int) -> DarkroomError:
    """Return the error with this exit code that a process wrote down, or what the code means."""
    notes = [json.loads(file.read_text()) for file in sorted(folder.glob("error-*.json"))]
    message = next((note["message"] for note in notes if note["exit_code"] == code), _meaning(code))
    kind = next((kind for kind in _KINDS if kind.exit_code == code), DarkroomError)
    return kind(message)


def _meaning(code: int) -> str:
    if code <= 128:
        return _MESSAGES.get(code, f"a captioning process ended with exit code {code}; its output above says why")
    return (
        f"a captioning process was killed by {signal.Signals(code - 128).name}. If memory ran out, lower "
        "caption.processes or caption.batch_size; finished captions are kept, start again to continue"
    )
