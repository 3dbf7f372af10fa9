"""Trackers get what training logs, and whatever happens to one of them, training goes on."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from components.errors import ConfigError
from components.storage.base import Storage
from components.storage.open import open_storage
from components.train.metrics.trackers import Trackers, check_installed

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "work/runs/first"))


def about(run: Storage, step: int = 0, training: str = "t1") -> dict[str, Any]:
    config = {
        "optimizer": {"learning_rate": 0.1, "betas": [0.9, 0.99]},
        "samples": {"prompts": ["<b>\n"]},
        "precision": "fp32",
    }
    return {"run": run.url, "training": training, "step": step, "project": "darkroom", "config": config}


def child(trackers: Trackers) -> int:
    """Return the process id of the one tracker that was started."""
    (process,) = trackers._processes.values()
    return process.pid


def fine(event: str, **fields: Any) -> None:
    assert event == "tracking", f"{event}: {fields}"


class Events(list[dict[str, Any]]):
    def __call__(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events_file = EventAccumulator(str(folder))
    events_file.Reload()
    return [(point.step, round(point.value, 4)) for point in events_file.Scalars(tag)]


def draw_sheet(run: Storage) -> None:
    buffer = io.BytesIO()
    sheet = Image.new("RGB", (12, 4), "red")
    sheet.paste("blue", (8, 0, 12, 4))
    sheet.save(buffer, "PNG")
    run.write("samples/step-000000002.png", buffer.getvalue())


def test_tensorboard_has_each_step_once_after_a_restart(run: Storage) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    draw_sheet(run)
    trackers = Trackers(["tensorboard"], about(run), fine)
    for step in (1, 2, 3, 4):
        trackers.log(step, {"train/loss": 1 / step})
    trackers.images(2, "samples/step-000000002.png", (4, 4))
    trackers.close(patience=60)
    trackers = Trackers(["tensorboard"], about(run, step=2), fine)
    for step in (3, 4, 5):
        trackers.log(step, {"train/loss": 1 / step, "validation/loss": 0.5})
    trackers.close(patience=60)

    folder = run.local_path("tracking/tensorboard")
    assert folder is not None
    assert scalars(folder, "train/loss") == [(step, round(1 / step, 4)) for step in (1, 2, 3, 4, 5)]
    assert [step for step, _ in scalars(folder, "validation/loss")] == [3, 4, 5]
    events_file = EventAccumulator(str(folder))
    events_file.Reload()
    shown = [np.asarray(Image.open(io.BytesIO(one.encoded_image_string))) for one in events_file.Images("samples")]
    shown += [
        np.asarray(Image.open(io.BytesIO(one.encoded_image_string)))
        for tag in events_file.Tags()["images"]
        if tag != "samples"
        for one in events_file.Images(tag)
    ]
    pixels = np.concatenate([one.reshape(-1, 3) for one in shown])
    assert {tuple(pixel) for pixel in pixels.tolist()} == {(255, 0, 0), (0, 0, 255)}
    assert list(folder.rglob("hparams.yml")), "the settings are kept, too"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    import boto3

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="images")
    yield open_storage("s3://images/work/runs/first")
    server.stop()


def test_on_a_remote_workdir_tensorboard_s_files_arrive_at_checkpoints(bucket: Storage, tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], about(bucket), fine)
    trackers.log(1, {"train/loss": 1.0})
    trackers.save()
    deadline = time.monotonic() + 60
    while not list(bucket.list("tracking/tensorboard")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trackers.log(2, {"train/loss": 0.5})
    trackers.close(patience=60)
    for entry in bucket.list("tracking/tensorboard"):
        bucket.download(entry.key, tmp_path / entry.key)
    assert scalars(tmp_path / "tracking/tensorboard", "train/loss") == [(1, 1.0), (2, 0.5)]


def test_wandb_offline_continues_the_same_run(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    draw_sheet(run)
    for first in (1, 3):
        trackers = Trackers(["wandb"], about(run, step=first - 1), fine)
        for step in (first, first + 1):
            trackers.log(step, {"train/loss": 1 / step})
        trackers.images(first + 1, "samples/step-000000002.png", (4, 4))
        trackers.close(patience=120)
    folder = run.local_path("tracking/wandb")
    assert folder is not None
    files = sorted(folder.rglob("run-*.wandb"))
    assert len({path.name for path in files}) == 1, "one run"
    assert len(files) == 2, "written in two parts"
    data = b"".join(path.read_bytes() for path in files)
    assert b"train/loss" in data
    assert b"learning_rate" in data
    assert list(folder.rglob("samples_*.png"))


def test_a_tracker_that_fails_says_why_once(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(run.url))
    events = Events()
    trackers = Trackers(["wandb"], about(run), events)
    os.waitid(os.P_PID, child(trackers), os.WEXITED | os.WNOWAIT)
    for step in range(1, 50):
        trackers.log(step, {"train/loss": 1.0})
    trackers.close(patience=60)
    (dropped,) = events
    assert (dropped["event"], dropped["tracker"]) == ("tracker-dropped", "wandb")
    assert "API key" in dropped["why"] or "api_key" in dropped["why"], dropped


def test_a_tracker_that_hangs_is_dropped_and_holds_nobody_up(run: Storage) -> None:
    events = Events()
    trackers = Trackers(["tensorboard"], about(run), events)
    os.kill(child(trackers), signal.SIGSTOP)
    longest, step = 0.0, 0
    while not events:
        step += 1
        assert step < 100_000
        began = time.monotonic()
        trackers.log(step, {f"train/{n}": 1.0 for n in range(20)})
        longest = max(longest, time.monotonic() - began)
    assert step > 100, "what comes while a tracker starts is not lost"
    assert longest < 3.0
    trackers.log(step, {"train/loss": 1.0})
    trackers.close(patience=60)
    assert [(event["event"], event["tracker"]) for event in events] == [("tracker-dropped", "tensorboard")]


def test_a_tracker_that_dies_is_dropped_once(run: Storage) -> None:
    events = Events()
    trackers = Trackers(["tensorboard"], about(run), events)
    os.kill(child(trackers), signal.SIGKILL)
    os.waitid(os.P_PID, child(trackers), os.WEXITED | os.WNOWAIT)
    for step in range(1, 5):
        trackers.log(step, {"train/loss": 1.0})
    trackers.close(patience=60)
    (dropped,) = events
    assert (dropped["event"], dropped["tracker"]) == ("tracker-dropped", "tensorboard")
    assert "-9" in dropped["why"]


def test_a_tracker_outlives_training_to_bring_out_what_it_has(run: Storage) -> None:
    events = Events()
    trackers = Trackers(["tensorboard"], about(run), events)
    trackers.log(1, {"train/loss": 1.0})
    trackers.close(patience=0.0)  # it has not even started
    assert [event["event"] for event in events] == ["tracker-left"]
    os.waitid(os.P_PID, child(trackers), os.WEXITED | os.WNOWAIT)
    folder = run.local_path("tracking/tensorboard")
    assert folder is not None
    assert scalars(folder, "train/loss") == [(1, 1.0)]
    trackers.close(patience=60)
    assert [event["event"] for event in events] == ["tracker-left", "tracking"]


def test_a_missing_package_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed([])
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install accelerate wandb"):
        check_installed(["tensorboard", "wandb"])
