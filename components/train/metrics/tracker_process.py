"""The process of one tracker: it is told lines of JSON on standard input and tells them on through accelerate.

`components.train.metrics.trackers` starts it. What it keeps on disk lies in ``runs/<run>/tracking/``: in place where
the run lies in a local folder, otherwise in a temporary folder that is uploaded at checkpoints and at the end.
Credentials and addresses come from the environment, as each library reads them (``WANDB_API_KEY``,
``MLFLOW_TRACKING_URI``, …).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.digests import short
from components.errors import DarkroomError, NotFound
from components.settings import flatten
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.metrics.trackers import MOST_BYTES

FOLDER = "tracking"
# Each letter takes six bytes in JSON at most, and what is written at once should arrive whole.
_MOST_LETTERS = (MOST_BYTES - 100) // 6
_LAST_SECONDS = 120.0


@dataclass(frozen=True)
class About:
    """What a tracker is told of its run.

    Attributes:
        run: URL of the run's folder.
        training: Identity of what is trained: a run that begins another training is another run to a tracker.
        step: The optimizer step that training goes on from.
        project: Under which runs are gathered: W&B's project, MLflow's experiment.
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
        """What the run is known by, also after a restart."""
        return short([self.run, self.training])

    @property
    def flat(self) -> dict[str, int | float | str | bool]:
        """The settings as plain values; what is none becomes JSON text."""
        plain = bool | int | float | str
        return {
            name: value if isinstance(value, plain) else json.dumps(value)
            for name, value in flatten(self.config).items()
        }


class Place:
    """Where a tracker keeps its files.

    Args:
        run: The run's folder.
        name: The tracker's.
        stack: Cleans up.
    """

    def __init__(self, run: Storage, name: str, stack: ExitStack) -> None:
        self.run = run
        self._key = f"{FOLDER}/{name}"
        local = run.local_path(self._key)
        self._is_elsewhere = local is None
        self.path = (local or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        self.path.mkdir(parents=True, exist_ok=True)
        self._uploaded: dict[Path, tuple[int, int]] = {}

    def save(self) -> None:
        """Upload what has changed since the last time, unless it lies in the run's folder anyway."""
        if not self._is_elsewhere:
            return
        for path in sorted(path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink()):
            found = path.stat()
            state = (found.st_size, found.st_mtime_ns)
            if self._uploaded.get(path) != state:
                self.run.upload(f"{self._key}/{path.relative_to(self.path).as_posix()}", path)
                self._uploaded[path] = state


def start_tensorboard(about: About, place: Place) -> Any:
    """Start TensorBoard's log; steps that are done again replace those that were lost."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker(".", place.path, purge_step=about.step + 1)
    tracker.start()
    if about.step == 0:
        tracker.store_init_configuration(about.flat)
    return tracker


def start_wandb(about: About, place: Place) -> Any:
    """Start or continue a run of W&B; it passes over steps that it was told before, whose numbers are the same."""
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(
        about.project, name=about.name, id=about.id, resume="allow", dir=place.path, settings={"console": "off"}
    )
    tracker.start()
    tracker.store_init_configuration(about.flat)
    return tracker


def start_mlflow(about: About, place: Place) -> Any:
    """Start or continue a run of MLflow, in the run's folder unless MLFLOW_TRACKING_URI names a place."""
    # MLflow calls a folder legacy, but its other local store takes a database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_TRACKING_URI", place.path.as_uri())
    from accelerate.tracking import MLflowTracker

    known = f"{FOLDER}/mlflow.json"
    try:
        noted = place.run.read_json(known)
    except NotFound:
        noted = {}
    run_id = noted.get("run_id") if noted.get("id") == about.id else None
    tracker = MLflowTracker(about.project, run_id=run_id, run_name=about.name)
    tracker.start()
    if run_id is None:
        tracker.store_init_configuration(about.flat)
        place.run.write_json(known, {"id": about.id, "run_id": tracker.tracker.info.run_id})
    return tracker


START: dict[str, Callable[[About, Place], Any]] = {
    "tensorboard": start_tensorboard,
    "wandb": start_wandb,
    "mlflow": start_mlflow,
}


def follow(tracker: Any, place: Place, lines: Iterable[bytes | str]) -> None:
    """Tell a tracker what it is told, line by line, until there are no more."""
    for line in lines:
        told = json.loads(line)
        if "values" in told:
            tracker.log(told["values"], step=told["step"])
        elif "sheet" in told:
            _show(tracker, place, told["sheet"], told["step"], *told["size"])
        elif "save" in told:
            place.save()
    tracker.finish()
    place.save()


def _show(tracker: Any, place: Place, sheet: str, step: int, height: int, width: int) -> None:
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(sheet).name
        place.run.download(sheet, path)
        if tracker.name == "mlflow":
            tracker.log_artifact(str(path), "samples")
            return
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    tiles = pixels.reshape(height, -1, width, 3).transpose(1, 0, 2, 3)  # [H, n·W, 3] -> [n, H, W, 3]
    kinds = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
    tracker.log_images({"samples": tiles}, step=step, **kinds)


def main(argv: Sequence[str]) -> int:
    """Run one tracker until its standard input ends; say on standard output how it goes, and why it gives up."""
    name, about = argv[0], About(**json.loads(argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when training does
    threading.Thread(target=_outlive, args=(os.getppid(),), daemon=True).start()
    say = _take_stdout()
    try:
        with ExitStack() as stack:
            from accelerate import PartialState

            PartialState(cpu=True)  # its loggers ask for it
            place = Place(open_storage(about.run), name, stack)
            tracker = START[name](about, place)
            say({"url": getattr(tracker.tracker, "url", None)})
            follow(tracker, place, sys.stdin.buffer)
    except Exception as error:  # whatever a tracker trips over is no reason to stop training
        say({"problem": f"{type(error).__name__}: {error}"[:_MOST_LETTERS]})
        return DarkroomError.exit_code
    return 0


def _outlive(parent: int) -> None:
    """End this process some time after the one that started it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(_LAST_SECONDS)
    os._exit(DarkroomError.exit_code)


def _take_stdout() -> Callable[[dict[str, Any]], None]:
    """Return what writes a line to the standard output, and leave the libraries none to print to."""
    ours = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def say(what: dict[str, Any]) -> None:
        with suppress(OSError):  # nobody listens any more
            os.write(ours, json.dumps(what).encode() + b"\n")

    return say


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
