"""The process of one tracker: it reads lines of JSON from standard input and logs them through accelerate.

`components.train.metrics.trackers` starts it. Its files are in ``runs/<run>/tracking/``: directly if the run is in a
local folder, otherwise in a temporary folder that is uploaded at checkpoints and at the end.
Credentials and addresses come from the environment, as the libraries read them (``WANDB_API_KEY``, …).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.digests import short
from components.errors import DarkroomError
from components.settings import flatten
from components.storage.base import Storage
from components.storage.open import open_storage
from components.storage.scratch import scratch_folder
from components.train.metrics.trackers import MAX_LINE_BYTES

FOLDER = "tracking"
# A letter takes at most six bytes in JSON, and a message must arrive whole.
_MAX_LETTERS = (MAX_LINE_BYTES - 100) // 6
_LAST_SECONDS = 120.0


@dataclass(frozen=True)
class RunDescription:
    """What a tracker shows about its run.

    Attributes:
        run: URL of the run's folder.
        training: Identity of the training: if a run begins another training, that is another run for the tracker.
        step: The optimizer step that training goes on from.
        project: W&B's project.
        config: The training's settings.
    """

    run: str
    training: str
    step: int
    project: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.rstrip("/").rpartition("/")[2]

    @property
    def id(self) -> str:
        """The run's id for trackers, the same after a restart."""
        return short([self.run, self.training])

    @property
    def flat(self) -> dict[str, int | float | str | bool]:
        """The settings by dotted path, as plain values; lists become JSON text."""
        plain = bool | int | float | str
        return {
            name: value if isinstance(value, plain) else json.dumps(value)
            for name, value in flatten(self.config).items()
        }


class TrackerFiles:
    """The folder of a tracker's files.

    Args:
        run: The run's folder.
        name: The tracker's.
        stack: Deletes the temporary folder at the end.
    """

    def __init__(self, run: Storage, name: str, stack: ExitStack) -> None:
        self.run = run
        self._key = f"{FOLDER}/{name}"
        local = run.local_path(self._key)
        self._is_remote = local is None
        self.path = (local or stack.enter_context(scratch_folder("tracker"))).resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        self._uploaded: dict[Path, tuple[int, int]] = {}

    def save(self) -> None:
        """Upload the files that changed since the last time, unless they are in the run's folder already."""
        if not self._is_remote:
            return
        for path in sorted(path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink()):
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._uploaded.get(path) != state:
                self.run.upload(f"{self._key}/{path.relative_to(self.path).as_posix()}", path)
                self._uploaded[path] = state


def start_tensorboard(description: RunDescription, files: TrackerFiles) -> Any:
    """Start TensorBoard's log; repeated steps replace those that were lost."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker(".", files.path, purge_step=description.step + 1)
    tracker.start()
    if description.step == 0:
        tracker.store_init_configuration(description.flat)
    return tracker


def start_wandb(description: RunDescription, files: TrackerFiles) -> Any:
    """Start or continue a run of W&B; it ignores steps that it has already, whose numbers are the same."""
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(
        description.project,
        name=description.name,
        id=description.id,
        resume="allow",
        dir=files.path,
        settings={"console": "off"},
    )
    tracker.start()
    tracker.store_init_configuration(description.flat)
    return tracker


START: dict[str, Callable[[RunDescription, TrackerFiles], Any]] = {
    "tensorboard": start_tensorboard,
    "wandb": start_wandb,
}


def follow(tracker: Any, files: TrackerFiles, lines: Iterable[bytes | str]) -> None:
    """Pass lines on to a tracker until there are no more."""
    for line in lines:
        message = json.loads(line)
        if "values" in message:
            tracker.log(message["values"], step=message["step"])
        elif "sheet" in message:
            _show(tracker, files, message["sheet"], message["step"], *message["size"])
        elif "save" in message:
            files.save()
    tracker.finish()
    files.save()


def _show(tracker: Any, files: TrackerFiles, sheet: str, step: int, height: int, width: int) -> None:
    import numpy as np
    from PIL import Image

    with scratch_folder("sheet") as folder:
        path = folder / Path(sheet).name
        files.run.download(sheet, path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    tiles = pixels.reshape(height, -1, width, 3).transpose(1, 0, 2, 3)  # [H, n·W, 3] -> [n, H, W, 3]
    kinds = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
    tracker.log_images({"samples": tiles}, step=step, **kinds)


def main(argv: Sequence[str]) -> int:
    """Run one tracker until its standard input ends; write to standard output that it has started, or its problem."""
    name, description = argv[0], RunDescription(**json.loads(argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when training does
    threading.Thread(target=_outlive, args=(os.getppid(),), daemon=True).start()
    send = _take_stdout()
    try:
        with ExitStack() as stack:
            from accelerate import PartialState

            PartialState(cpu=True)  # its loggers ask for it
            files = TrackerFiles(open_storage(description.run), name, stack)
            tracker = START[name](description, files)
            send({"url": getattr(tracker.tracker, "url", None)})
            follow(tracker, files, sys.stdin.buffer)
    except Exception as error:  # no failure of a tracker may stop training
        send({"problem": f"{type(error).__name__}: {error}"[:_MAX_LETTERS]})
        return DarkroomError.exit_code
    return 0


def _outlive(parent: int) -> None:
    """End this process some time after the one that started it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(_LAST_SECONDS)
    os._exit(DarkroomError.exit_code)


def _take_stdout() -> Callable[[dict[str, Any]], None]:
    """Return a function that writes a line to standard output, and redirect all other output to nowhere."""
    ours = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def send(message: dict[str, Any]) -> None:
        with suppress(OSError):  # training has ended
            os.write(ours, json.dumps(message).encode() + b"\n")

    return send


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
