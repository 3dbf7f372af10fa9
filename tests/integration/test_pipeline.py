"""One whole small run through the command line, from a folder of images to a published model; then the same again.

Every step is a process, the training two, as in any run on one machine; only the images and the model are small.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from components.command import load_steps
from components.digests import digest_tree
from components.storage.open import open_storage
from pipeline.config import resolve
from tests.processes import Process

pytestmark = pytest.mark.slow

RECIPE = str(Path(__file__).parents[1] / "recipes/small.yaml")
RUN = resolve(RECIPE).run
# Kubeflow's local runner puts the interpreter's path in place of one of these words, and sh looks at the others.
WORKDIR = "it's a $work dir/python3"
IMAGES, NEW, STEPS = 40, 3, 8
# What somebody runs who has diffusers and has never heard of Darkroom.
STRANGER = """
import sys
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
image = pipeline("a red picture", num_inference_steps=2, height=16, width=16).images[0]
assert image.size == (16, 16), image.size
"""


@dataclass(frozen=True)
class Ended:
    """What a run left in the terminal."""

    code: int
    out: str
    err: str
    began: float

    @property
    def words(self) -> dict[str, str]:
        """The rest of each line by its first word; of several lines the last."""
        return {line.split()[0]: line for line in self.out.splitlines() if line}


@dataclass(frozen=True)
class Place:
    """A folder in which somebody works."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / WORKDIR / "runs" / RUN

    def command(self, *arguments: str) -> list[str]:
        darkroom = [sys.executable, "-m", "pipeline.cli", "run", "--recipe", RECIPE, "--workdir", WORKDIR]
        return [*darkroom, *arguments]

    def start(self, *arguments: str, limit: str = "unlimited", **environment: str) -> Process:
        """Start a run; no process of it may take more than ``limit`` seconds of CPU time."""
        command = ["sh", "-c", f'ulimit -t {limit} && exec "$@"', "sh", *self.command(*arguments)]
        return Process(
            command,
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def go(self, *arguments: str, limit: str = "unlimited", **environment: str) -> Ended:
        began = time.time()
        with self.start(*arguments, limit=limit, **environment) as process:
            out, err = process.communicate()
        return Ended(process.returncode, out, err, began)

    def report(self) -> dict[str, Any]:
        numbers: dict[str, Any] = json.loads((self.run / "report.json").read_text())
        return numbers

    def history(self) -> dict[str, str]:
        """What the training left behind, as digests."""
        return {name: digest_tree(self.run, [name]) for name in ("checkpoints", "samples")} | {
            name: (self.run / name).read_text() for name in ("metrics.jsonl", "events.jsonl", "ledger.jsonl")
        }


def paint(folder: Path, numbers: range) -> None:
    """Write pictures that are red or blue, each another, with captions."""
    for number in numbers:
        channel, color = ((0, "red"), (2, "blue"))[number % 2]
        pixels = np.random.default_rng(number).integers(0, 90, (20, 24, 3), dtype=np.uint8)
        pixels[..., channel] += 150
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {color} picture")


def spoil(folder: Path) -> None:
    """Write what must be left out."""
    whole = (folder / "00.png").read_bytes()
    (folder / "duplicate.png").write_bytes(whole)
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture at all")
    (folder / "<b>cut\n.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (30, 30)).save(folder / "silent.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("somewhere")
    (folder / "images").mkdir()
    paint(folder / "images", range(IMAGES))
    spoil(folder / "images")
    return Place(folder)


@pytest.fixture(scope="module")
def first(place: Place) -> tuple[Ended, dict[str, Any], dict[str, str]]:
    """The first run, its report, and what the training left behind."""
    ended = place.go()
    assert ended.code == 0, ended.out + ended.err
    return ended, place.report(), place.history()


@pytest.fixture(scope="module")
def again(place: Place, first: Any) -> tuple[Ended, dict[str, Any], dict[str, str]]:
    """The same command once more."""
    ended = place.go()
    assert ended.code == 0, ended.out + ended.err
    return ended, place.report(), place.history()


@pytest.fixture(scope="module")
def grown(place: Place, again: Any) -> tuple[Ended, dict[str, Any]]:
    """The same command when there are new images, interrupted once the dataset is there."""
    paint(place.folder / "images", range(IMAGES, IMAGES + NEW))
    began, out = time.time(), ""
    with place.start() as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            out += line
            if line.startswith("index "):
                process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    return Ended(process.returncode, out, err, began), place.report()


def test_a_person_sees_a_line_for_each_step_and_nothing_else(first: Any) -> None:
    ended, _, _ = first
    lines = ended.out.splitlines()
    assert lines[0] == f"{RUN} in {WORKDIR}"
    assert "42 images, 3 rejected" in ended.words["ingest"]
    assert ended.words["train"].endswith("2 attempts")
    assert ended.words["report"] == f"report            {WORKDIR}/runs/{RUN}/report.html"
    for group in ("00", "01"):
        assert sum(line.startswith(f"caption {group}") for line in lines) == 1
        assert sum(line.startswith(f"latents {group}") for line in lines) == 1
    assert [line.split("· ")[1] for line in lines if "· " in line] == [
        "8 steps: each of 33 samples is seen 1.7 times",
        "spot notice to rank 1 at step 4",
        "preempted at step 5, 0 steps lost",
        "resumed at step 5",
    ]
    closing = ["images", "rejected", "training", "speed", "Prompt", "Fréchet", "published", "time", "report"]
    known = [RUN, *load_steps(), *closing]
    assert [line for line in lines if line and line.split()[0] not in known] == []
    assert all(len(line) <= 80 for line in lines)
    assert ended.err == ""
    assert "\x1b" not in ended.out


def test_the_log_has_what_the_terminal_is_spared(place: Place, first: Any) -> None:
    log = (place.run / "pipeline.log").read_text()
    assert "[KFP Executor" in log
    assert "Running pipeline: 'darkroom'" in log
    assert "\x1b" not in log


def test_the_report_counts_what_was_there(place: Place, first: Any) -> None:
    _, numbers, _ = first
    assert numbers["status"] == "succeeded"
    assert numbers["error"] is None
    assert (numbers["images"], numbers["encoded"], numbers["reused"]) == (IMAGES, IMAGES, 0)
    reasons = {"empty-file": 1, "not-an-image": 1, "truncated": 1, "duplicate": 1, "caption-missing": 1}
    assert (numbers["rejected"], numbers["rejected_by_reason"]) == (5, reasons)
    (dataset,) = (place.folder / WORKDIR).glob("datasets/*/sets/*/*/dataset.json")
    assert numbers["dataset_digest"] == json.loads(dataset.read_text())["digest"]
    assert 0 < numbers["held_out"] < IMAGES / 2


def test_sample_images_are_of_the_images_own_captions(place: Place, first: Any) -> None:
    samples = json.loads((place.run / "samples/index.json").read_text())
    assert set(samples["prompts"]) == {"a red picture", "a blue picture"}
    assert samples["steps"] == [2, STEPS]


def test_the_report_tells_of_the_training(first: Any) -> None:
    _, numbers, _ = first
    assert (numbers["steps"], numbers["attempts"]) == (STEPS, 2)
    assert (numbers["preemptions"], numbers["steps_lost"]) == (1, 0)
    assert 0 < numbers["goodput"] < 1
    assert numbers["training_seconds"] == pytest.approx(sum(numbers["ledger"].values()))
    assert 0 < numbers["base_share"] < 0.001
    assert numbers["goodput"] == pytest.approx(numbers["ledger"]["useful"] / sum(numbers["ledger"].values()))
    assert numbers["samples_per_second"] > 0
    assert 0 <= numbers["metrics"]["prompt_accuracy"]["value"] <= 1
    assert numbers["metrics"]["frechet_distance"]["value"] > 0
    assert set(numbers["seconds"]) == set(load_steps()) - {"report"}
    assert next(iter(numbers["seconds"])) == "ingest"
    assert all(seconds > 0 for seconds in numbers["seconds"].values())
    assert numbers["seconds"]["train"] < numbers["wall_seconds"]


def test_anybody_can_load_what_was_published(place: Place, first: Any) -> None:
    _, numbers, _ = first
    published = place.folder / WORKDIR / numbers["published"]
    champion = json.loads((published.parent / "champion.json").read_text())
    assert champion["path"] == numbers["published"]
    assert champion["run"] == RUN
    loaded = subprocess.run(
        [sys.executable, "-c", STRANGER, str(published)], cwd=place.folder, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr


def test_the_same_command_does_no_work_twice(place: Place, first: Any, again: Any) -> None:
    _, before, history = first
    ended, numbers, kept = again
    assert kept == history
    assert (numbers["encoded"], numbers["reused"]) == (0, IMAGES)
    assert "0 new" in ended.words["ingest"]
    assert "8 steps" in ended.words["train"]
    assert "attempts" not in ended.words["train"]
    for name in ("steps", "preemptions", "goodput", "samples_per_second", "published", "dataset_digest", "ledger"):
        assert numbers[name] == before[name], name


def test_records_of_an_earlier_time_do_not_count(place: Place, again: Any) -> None:
    ended, numbers, _ = again
    assert numbers["started"] > ended.began
    assert "publish" not in numbers["seconds"]  # the champion stays


def test_new_images_are_all_that_is_encoded(grown: Any) -> None:
    ended, numbers = grown
    assert (numbers["images"], numbers["encoded"], numbers["reused"]) == (IMAGES + NEW, NEW, IMAGES)
    assert "3 new" in ended.words["ingest"]


def test_a_run_that_is_interrupted_ends_tidily(place: Place, grown: Any) -> None:
    ended, numbers = grown
    assert ended.code == 75
    assert "Ctrl-C" in ended.words["stopping"]
    assert ended.err.splitlines()[0].startswith("stopped")
    assert numbers["status"] == "stopped"
    assert numbers["error"] is None
    assert "evaluate" not in numbers["seconds"]
    assert str(place.folder) not in running_commands()


def running_commands() -> str:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended since
            found.append(process.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def said(ended: Ended) -> dict[str, str]:
    """Return what an error's lines say by their first word."""
    return {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in ended.err.splitlines()}


def test_a_source_without_images_is_told_in_three_lines(place: Place) -> None:
    (place.folder / "empty").mkdir()
    ended = place.go("--source", "empty")
    assert ended.code == 65
    told = said(ended)
    assert told["error:"].startswith("ingest: ")
    assert "empty" in told["error:"]
    assert (place.folder / told["log"]).is_file()
    numbers = json.loads((place.folder / told["report"]).with_suffix(".json").read_text())
    assert numbers["status"] == "failed"
    assert numbers["error"]["step"] == "ingest"
    assert list(said(ended)) == ["error:", "log", "report"]


def test_a_step_that_is_killed_is_named_and_reported(place: Place) -> None:
    ended = place.go("--set", "model.scratch.training.steps=1000000", limit="4")
    assert ended.code == 70
    told = said(ended)
    assert told["error:"].startswith("autoencoder: its process ended without a word: it was killed, or ran out of")
    numbers = json.loads((place.folder / told["report"]).with_suffix(".json").read_text())
    assert numbers["error"]["step"] == "autoencoder"


@pytest.fixture
def store() -> Iterator[Mapping[str, str]]:
    """A small S3 store, and the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


def test_a_workdir_may_be_on_s3(place: Place, store: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    ended = place.go("--workdir", "s3://bucket/some where", "--source", "s3://bucket/nowhere", **store)
    assert ended.code == 65
    told = said(ended)
    run = told["report"].removesuffix("/report.html")
    assert run.startswith("s3://bucket/some where/runs/small-")
    storage = open_storage(run)
    assert storage.read_json("report.json")["status"] == "failed"
    assert b"Running pipeline" in storage.read("pipeline.log")
