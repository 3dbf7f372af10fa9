"""A small encoded dataset and an untrained base model, and real training processes over them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.dataset.empty_prompt import EmptyPrompt, write_empty_prompt
from components.dataset.format import Sample, pack
from components.dataset.versions import Shard, make_dataset, read_dataset, write_dataset
from components.digests import sha256
from components.model import checkpoints
from components.model.architecture import Architecture, AutoencoderArchitecture, TextArchitecture, UnetArchitecture
from components.storage.base import Storage
from components.storage.open import open_storage
from tests.models import commit_all
from tests.processes import Process

TINY = Architecture(
    resolution=16,
    autoencoder=AutoencoderArchitecture(channels=(8, 8), norm_groups=4),
    text=TextArchitecture(vocabulary=600, max_tokens=8, hidden=16, layers=1, heads=2),
    unet=UnetArchitecture(channels=(8, 16), norm_groups=4, attention_heads=2, cross_attention=(False, True)),
)
SHARD_SIZES = (13, 7, 16, 11)  # 47 samples: no batch size divides them


@dataclass
class Ended:
    """How one gang of training processes ended."""

    code: int
    output: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def events_named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]


@dataclass(frozen=True)
class Workshop:
    """A workdir with everything that training needs."""

    workdir: Storage
    settings: Mapping[str, Any]

    def run(self, name: str) -> Storage:
        return self.workdir.child(f"runs/{name}")

    def digest(self, dataset: str = "key") -> str:
        committed = read_dataset(self.workdir.child(f"datasets/{dataset}"))
        assert committed is not None
        return committed.digest

    def start(self, name: str, *overrides: str, dataset: str = "key") -> Process:
        arguments = ["--workdir", self.workdir.url, "--run", name, "--encoding-key", dataset, "--seed", "5"]
        arguments += ["--base-model", "workdir:models/base/tiny"]
        for text in (*(f"{key}={json.dumps(value)}" for key, value in self.settings.items()), *overrides):
            arguments += ["--set", text]
        return Process(
            [sys.executable, "-m", "components.train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def train(
        self,
        name: str,
        *overrides: str,
        at_step: int = 0,
        act: Callable[[Any], None] | None = None,
        dataset: str = "key",
    ) -> Ended:
        """Train until the gang ends; at the first step from ``at_step`` on, ``act`` once on its `Gang`."""

        def hear(_gang: Gang, event: dict[str, Any]) -> bool:
            return event.get("event") == "step" and event["step"] >= at_step

        return self.train_until(name, *overrides, hear=hear, act=act, dataset=dataset)

    def train_until(
        self,
        name: str,
        *overrides: str,
        hear: Callable[[Any, dict[str, Any]], bool],
        act: Callable[[Any], None] | None,
        dataset: str = "key",
    ) -> Ended:
        """Train until the gang ends; ``act`` once, on the first event for which ``hear`` returns true."""
        lines = []
        with self.start(name, *overrides, dataset=dataset) as process:
            gang = Gang(process)
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                event = gang.hear(line)
                if act is not None and hear(gang, event):
                    act(gang)
                    act = None
        return Ended(process.returncode, "".join(lines), gang.events)

    def state(self, name: str) -> str:
        """Return the digest of the newest checkpoint: weights, moments and moving average of all ranks."""
        newest = checkpoints.newest(self.run(name))
        assert newest is not None
        newest.verify()
        whole = {kind: newest.read_all(kind) for kind in checkpoints.KINDS}
        return sha256(b"".join(whole[kind][name].tobytes() for kind in checkpoints.KINDS for name in newest.shapes))

    def losses(self, name: str) -> list[float]:
        return [line["loss"] for line in self.run(name).read_lines("metrics.jsonl")]


@dataclass
class Gang:
    """The processes of one attempt, as the agent's events describe them."""

    agent: Process
    ranks: dict[int, int] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, line: str) -> dict[str, Any]:
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            return {}
        self.events.append(event)
        if event["event"] == "rank-started":
            self.ranks[event["rank"]] = event["pid"]
        return event

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.ranks[rank], number)


POISON = 20


def _sample(number: int, poison: bool) -> Sample:
    rng = np.random.default_rng(number)
    meta = {"sha256": sha256(b"%d" % number), "caption": f"number {number}", "caption_digest": sha256(b"c%d" % number)}
    moments = rng.standard_normal((8, 8, 8)).astype(np.float16)
    if poison and number == POISON:
        moments[0, 0, 0] = np.nan
    return Sample(meta["sha256"], moments, rng.standard_normal((8, 16)).astype(np.float16), meta)


def _write_dataset(storage: Storage, poison: bool) -> None:
    shards, first = [], 0
    for number, size in enumerate(SHARD_SIZES):
        tar, index = pack([_sample(i, poison) for i in range(first, first + size)])
        name = f"shards/16x16/{number:016x}"
        storage.write(f"{name}.tar", tar)
        storage.write(f"{name}.idx", index)
        shards.append(Shard(name, (16, 16), size, len(tar), sha256(tar)))
        first += size
    write_empty_prompt(storage, EmptyPrompt(np.zeros((8, 16), dtype=np.float16)))
    write_dataset(storage, make_dataset("key", {}, shards, rejected=0))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workdir with a dataset and a base model, and settings that train in seconds."""
    from components.autoencoder.scratch import build_scratch

    root: Path = tmp_path_factory.mktemp("workshop")
    build_scratch(TINY, [f"number {i}" for i in range(47)], seed=1).save_pretrained(root / "models/base/tiny")
    workdir = open_storage(str(root))
    commit_all(workdir.child("models/base/tiny"))
    _write_dataset(workdir.child("datasets/key"), poison=False)
    _write_dataset(workdir.child("datasets/poisoned"), poison=True)
    settings = {
        "steps": 30,
        "global_batch": 10,
        "micro_batch": 3,
        "ranks": 2,
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 3},
        "ema": {"decay": 0.9},
        "data": {"window": 2},
        "checkpoint": {"every": 7},
        "metrics": {"log_every": 1},
    }
    return Workshop(workdir, settings)
