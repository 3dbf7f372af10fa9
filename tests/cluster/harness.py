"""A launcher under test: a played cluster, a real workdir, and a launcher between them."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import urllib3
from kubernetes import client

from components.accounting.ledger import read_ledger
from components.progress import Progress
from components.storage.base import Storage
from pipeline.config import RunConfig
from pipeline.launch.api import Cluster
from pipeline.launch.cluster_launcher import launch
from pipeline.launch.context import LaunchContext
from tests.cluster.api_server import NAMESPACE, ApiServer
from tests.cluster.operators import GangScript, Operators

STEPS = 40
QUICK = {"poll_seconds": 0.02, "usd_per_hour": 3.6, "where": "trainjob"}


class RecordingProgress(Progress):
    """Keeps the events of the launcher."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.events: list[dict[str, Any]] = []

    def event(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def all(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


@dataclass
class Harness:
    """A cluster and a workdir; `as_on_a_cluster` makes the cluster's times what they are on a real one."""

    server: ApiServer
    workdir: Storage
    progress: RecordingProgress = field(default_factory=RecordingProgress)
    clock: Callable[[], float] = time.time
    outage: threading.Lock = field(default_factory=threading.Lock)

    def as_on_a_cluster(self, speed: float) -> None:
        """Let the cluster's clock, which is the launcher's, too, run fast, and write times in whole seconds."""
        began, now = time.monotonic(), time.time()
        self.clock = lambda: now + speed * (time.monotonic() - began)
        self.server.store.clock, self.server.store.whole_seconds = self.clock, True

    def settings(self, **changes: Any) -> RunConfig:
        launch_settings = {**QUICK, **changes.pop("launch", {})}
        placement = {"cloud": "gke", "nodes": 2, "gpus": 1, "queue": "gpus", **changes.pop("placement", {})}
        values = {"name": "lab", "ingest": {"source": "unused"}, "train": {"steps": STEPS, **changes.pop("train", {})}}
        return RunConfig.parse({**values, "launch": launch_settings, "placement": placement, **changes})

    def run(self, config: RunConfig) -> Storage:
        return self.workdir.child(f"runs/{config.run}")

    def operators(self, config: RunConfig, *scripts: GangScript) -> Operators:
        return Operators(self.server, self.run(config), STEPS, list(scripts))

    def cluster(self, patience: float = 20.0) -> Cluster:
        settings = client.Configuration(host=self.server.url)
        settings.retries = urllib3.Retry(0)
        return Cluster(client.ApiClient(settings), NAMESPACE, patience, sleep=lambda seconds: time.sleep(seconds / 20))

    def launch(self, config: RunConfig, dataset: str = "digest", patience: float = 20.0) -> dict[str, Any]:
        context = LaunchContext(
            config, self.workdir, "workdir:models/base", "key", dataset, self.progress, wall_clock=self.clock
        )
        return launch(context, self.cluster(patience))

    def events(self, config: RunConfig, name: str) -> list[dict[str, Any]]:
        return [event for event in self.run(config).read_lines("events.jsonl") if event["event"] == name]

    def exit_codes(self, config: RunConfig) -> list[int]:
        return [event["exit_code"] for event in self.events(config, "attempt-ended")]

    @property
    def remaining_objects(self) -> list[str]:
        """The names of all jobs and pods in the cluster."""
        store = self.server.store
        return [item["metadata"]["name"] for plural in ("trainjobs", "pods") for item in store.list(plural)]


def assert_books_are_right(harness: Harness, config: RunConfig) -> None:
    """Each attempt is in the ledger, each of its states once, and all events are in the order of time."""
    ledger = read_ledger(harness.run(config))
    states = [(line.attempt, line.state) for line in ledger]
    assert len(states) == len(set(states))
    assert sorted({line.attempt for line in ledger}) == list(range(1 + max(line.attempt for line in ledger)))
    ended = [event["attempt"] for event in harness.events(config, "attempt-ended")]
    assert ended == sorted(set(ended))
    times = [event["time"] for event in harness.run(config).read_lines("events.jsonl")]
    assert times == sorted(times)
