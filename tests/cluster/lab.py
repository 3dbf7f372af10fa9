"""A cluster that is played in this process, a workdir, and a launcher between them."""

from __future__ import annotations

import io
import threading
import time
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
from tests.cluster.api_server import NAMESPACE, ApiServer
from tests.cluster.operators import Life, Operators

STEPS = 40
QUICK = {"poll_seconds": 0.02, "usd_per_hour": 3.6, "where": "trainjob"}


class Ears(Progress):
    """Keeps what the launcher tells."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.events: list[dict[str, Any]] = []

    def event(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def told(self, event: str) -> list[dict[str, Any]]:
        return [found for found in self.events if found["event"] == event]


@dataclass
class Lab:
    """A cluster and a workdir."""

    server: ApiServer
    workdir: Storage
    ears: Ears
    outage: threading.Lock = field(default_factory=threading.Lock)

    def settings(self, **changes: Any) -> RunConfig:
        launch_settings = {**QUICK, **changes.pop("launch", {})}
        placement = {"cloud": "gke", "nodes": 2, "gpus": 1, "queue": "gpus", **changes.pop("placement", {})}
        values = {"name": "lab", "ingest": {"source": "unused"}, "train": {"steps": STEPS, **changes.pop("train", {})}}
        return RunConfig.parse({**values, "launch": launch_settings, "placement": placement, **changes})

    def run(self, config: RunConfig) -> Storage:
        return self.workdir.child(f"runs/{config.run}")

    def operators(self, config: RunConfig, *script: Life) -> Operators:
        return Operators(self.server, self.run(config), STEPS, list(script))

    def cluster(self, patience: float = 20.0) -> Cluster:
        settings = client.Configuration(host=self.server.url)
        settings.retries = urllib3.Retry(0)
        return Cluster(client.ApiClient(settings), NAMESPACE, patience, sleep=lambda seconds: time.sleep(seconds / 20))

    def launch(self, config: RunConfig, dataset: str = "digest", patience: float = 20.0) -> dict[str, Any]:
        where = (self.workdir, "workdir:models/base", "key", dataset)
        return launch(config, *where, self.ears, self.cluster(patience))

    def events(self, config: RunConfig, name: str) -> list[dict[str, Any]]:
        return [event for event in self.run(config).read_lines("events.jsonl") if event["event"] == name]

    def codes(self, config: RunConfig) -> list[int]:
        return [event["exit_code"] for event in self.events(config, "attempt-ended")]

    @property
    def left(self) -> list[str]:
        """What is still in the cluster."""
        return [found["metadata"]["name"] for kind in ("trainjobs", "pods") for found in self.server.store.list(kind)]


def assert_books_are_right(lab: Lab, config: RunConfig) -> None:
    """Each state of each attempt is in the ledger once, and all of it adds up to the time since the first job."""
    ledger = read_ledger(lab.run(config))
    keys = [(line.attempt, line.state) for line in ledger]
    assert len(keys) == len(set(keys))
    assert sorted({line.attempt for line in ledger}) == list(range(1 + max(line.attempt for line in ledger)))
    ended = lab.events(config, "attempt-ended")
    assert [event["attempt"] for event in ended] == sorted({event["attempt"] for event in ended})
    assert [event["time"] for event in lab.run(config).read_lines("events.jsonl")] == sorted(
        event["time"] for event in lab.run(config).read_lines("events.jsonl")
    )
