"""Several processes that caption one group, a GPU for each: started as ``accelerate launch`` does, by torchrun.

They share nothing while they work. Each captions every n-th batch and saves what it has made where a killed step would
find it, so one that dies costs the others nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from components import errors
from components.caption.config import CaptionConfig
from components.caption.job import Job
from components.caption.resume import read_outcomes
from components.errors import ConfigError, DarkroomError
from components.image.records import ImageOutcome
from components.model.locations import select_device
from components.storage.open import open_storage

# Seconds that the processes have to end once they are asked to.
_GRACE = 20.0


def processes(config: CaptionConfig) -> int:
    """Return how many processes are to caption.

    Raises:
        ConfigError: Where there are fewer GPUs, or none where one is asked for.
    """
    gpus = torch.cuda.device_count() if select_device(config.device).type == "cuda" else 0
    if gpus and config.processes > gpus:
        raise ConfigError(f"caption.processes is {config.processes}, and this machine has {gpus} GPUs; each needs one")
    return config.processes or max(gpus, 1)


def caption(job: Job, images: Sequence[str], count: int) -> Iterator[ImageOutcome]:
    """Let several processes caption some images of a group, and yield what they made.

    Args:
        job: The group; its workdir must be one that other processes can open.
        images: Digests of the images, in the order in which they make batches.
        count: How many processes there are to be.

    Raises:
        DarkroomError: Where one of them fails: the error that it had.
    """
    with tempfile.TemporaryDirectory(prefix="darkroom-caption-") as folder:
        task = Path(folder) / "job.json"
        task.write_text(json.dumps({**job.to_json(), "images": list(images), "parent": os.getpid()}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        code = _run([*command, "-m", "components.caption.process", str(task)])
        if code != 0:
            raise _problem(Path(folder), code)
        made = open_storage(folder)
        for rank in range(count):
            yield from read_outcomes(made, made_key(rank))


def made_key(rank: int) -> str:
    """Return the file, beside the job's, in which a process leaves what it made."""
    return f"made-{rank:03d}.jsonl"


def _run(command: Sequence[str]) -> int:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as gang:  # noqa: S603 - no shell
        try:
            return gang.wait()
        finally:
            if gang.poll() is None:  # this process is stopped: torchrun passes that on
                gang.terminate()
                try:
                    gang.wait(_GRACE)
                except subprocess.TimeoutExpired:
                    gang.kill()


def _problem(folder: Path, code: int) -> DarkroomError:
    """Return the error that a process left behind, or what can be said without one."""
    for note in sorted(folder.glob("error-*.json")):
        told = json.loads(note.read_text())
        kind: type[DarkroomError] = getattr(errors, told["kind"], DarkroomError)
        return kind(told["message"])
    return DarkroomError(f"the captioning processes ended with code {code} and said nothing; see their output above")
