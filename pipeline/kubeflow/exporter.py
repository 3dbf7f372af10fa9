"""Prometheus metrics of all runs of a workdir, from the records that the runs keep of themselves.

    python -m pipeline.kubeflow.exporter --workdir s3://bucket/darkroom --port 9464

Runs do not depend on it, so it also shows a run whose launcher is gone. The chart's alerts and dashboard use these
names.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from components.accounting.ledger import LEDGER, by_state, read_ledger, spent
from components.errors import EXIT_DONE, DarkroomError, Preempted
from components.progress import Progress
from components.storage.base import Storage
from components.storage.open import open_storage

# Enough for the last line of metrics.jsonl, which grows with every step.
_TAIL_BYTES = 1 << 16
_RECORDS = ("config.json", "events.jsonl", LEDGER, "metrics.jsonl")
_BEGINNINGS = frozenset({"attempt-started", "loading", "training"})
_ENDINGS = frozenset({"attempt-ended", "preempted", "finished"})

_GAUGES = {
    "step": "last optimizer step in the run's metrics",
    "steps": "optimizer steps of the whole run",
    "loss": "loss of that step",
    "samples_per_second": "images per second of that step, over all ranks",
    "training": "1 from the start of an attempt to train until it ends",
    "spent_usd": "cost of the ledger's nodes, in US dollars",
    "budget_usd": "launch.budget_usd; absent if there is none",
}
_COUNTERS = {
    "preemptions": "attempts that ended preempted, with the state saved",
    "crashes": "attempts that ended in any other way than done or preempted",
}


class Facts(NamedTuple):
    """The numbers in one run's records.

    Attributes:
        values: By the names of the gauges and counters; numbers that the records lack are absent.
        node_seconds: Seconds times nodes, by state of the ledger.
    """

    values: Mapping[str, float]
    node_seconds: Mapping[str, float]


class Exporter(Collector):
    """Reads the runs' records and offers their numbers to Prometheus.

    Args:
        workdir: Holds the runs.
        progress: Receives what cannot be read.
        clock: Seconds since 1970.
    """

    def __init__(self, workdir: Storage, progress: Progress, clock: Callable[[], float] = time.time) -> None:
        self._workdir = workdir
        self._progress = progress
        self._clock = clock
        self._cache: dict[str, tuple[object, Facts]] = {}
        self._read_at: float | None = None

    def refresh(self) -> None:
        """Read the records that have changed since the last time; if one cannot be read, its old numbers stay."""
        try:
            current = self._versions_by_run()
        except DarkroomError as error:
            self._progress.event("unreadable", problem=str(error))
            return
        for run, versions in current.items():
            if run not in self._cache or self._cache[run][0] != versions:
                try:
                    self._cache[run] = versions, read_facts(self._workdir.child(f"runs/{run}"))
                except (DarkroomError, ValueError, KeyError, TypeError) as error:
                    self._progress.event("unreadable", run=run, problem=str(error))
        for run in self._cache.keys() - current.keys():
            del self._cache[run]
        self._read_at = self._clock()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all runs."""
        yield from families({run: facts for run, (_, facts) in sorted(self._cache.items())})
        if self._read_at is not None:
            what = "when the records were last read, in seconds since 1970"
            yield GaugeMetricFamily("darkroom_exporter_read_timestamp_seconds", what, value=self._read_at)

    def _versions_by_run(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Return the runs, each with the versions of its records."""
        records_of: dict[str, list[tuple[str, str]]] = {}
        for entry in self._workdir.list("runs"):
            _, run, *rest = entry.key.split("/")
            if len(rest) == 1 and rest[0] in _RECORDS:
                records_of.setdefault(run, []).append((rest[0], f"{entry.size} {entry.modified}"))
        return {run: tuple(records) for run, records in records_of.items()}


def read_facts(run: Storage) -> Facts:
    """Read one run's records; any of them may be missing.

    Raises:
        DarkroomError: If a record is malformed or cannot be read.
    """
    config = run.read_object("config.json") if run.exists("config.json") else {}
    events = list(run.read_lines("events.jsonl")) if run.exists("events.jsonl") else []
    ledger = read_ledger(run)
    last = last_metrics(run)
    values = {
        "step": last.get("step"),
        "loss": last.get("loss"),
        "samples_per_second": last.get("samples_per_second"),
        "steps": _last_step(config, events),
        "budget_usd": _section(config, "launch").get("budget_usd"),
        "spent_usd": spent(ledger),
        "training": float(is_training(events)),
        "preemptions": preemptions(events),
        "crashes": sum(event.get("exit_code") not in (EXIT_DONE, Preempted.exit_code) for event in ended(events)),
    }
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return Facts(numbers, {state: total.node_seconds for state, total in by_state(ledger).items()})


def _last_step(config: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Any:
    """Return the steps of the whole run; if the settings have epochs instead, they are known once training starts."""
    steps = _section(config, "train").get("steps")
    begun = (event.get("steps") for event in reversed(events) if event.get("event") == "training")
    return next(begun, None) if steps is None else steps


def last_metrics(run: Storage) -> Mapping[str, Any]:
    """Return the last whole line of ``metrics.jsonl`` without reading all of it; empty if there is none."""
    if not run.exists("metrics.jsonl"):
        return {}
    size = run.entry("metrics.jsonl").size
    tail = run.read("metrics.jsonl", start=max(0, size - _TAIL_BYTES)) if size else b""
    for line in reversed(tail.split(b"\n")):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn, or the rest of a line that begins before the tail
        if isinstance(record, dict) and "step" in record:
            return record
    return {}


def is_training(events: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether the last attempt that began has not ended yet."""
    names = [event["event"] for event in events if event["event"] in _BEGINNINGS | _ENDINGS]
    return bool(names) and names[-1] in _BEGINNINGS


def ended(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the launcher's accounts of attempts."""
    return [event for event in events if event["event"] == "attempt-ended"]


def preemptions(events: Sequence[Mapping[str, Any]]) -> int:
    """Return how often training was preempted: the trainer writes it at once, the launcher later."""
    accounts = len([event for event in ended(events) if event.get("exit_code") == Preempted.exit_code])
    notices = len([event for event in events if event["event"] == "preempted"])
    return max(accounts, notices)


def families(runs: Mapping[str, Facts]) -> Iterator[Metric]:
    """Yield one metric family per number, with a line per run that has it."""
    for name, what in _GAUGES.items():
        yield _filled(GaugeMetricFamily(f"darkroom_run_{name}", what, labels=["run"]), name, runs)
    for name, what in _COUNTERS.items():
        yield _filled(CounterMetricFamily(f"darkroom_run_{name}", what, labels=["run"]), name, runs)
    what = "seconds times nodes, by state of the ledger"
    seconds = CounterMetricFamily("darkroom_run_node_seconds", what, labels=["run", "state"])
    for run, facts in runs.items():
        for state, value in facts.node_seconds.items():
            seconds.add_metric([run, state], value)
    yield seconds


def _filled(family: Any, name: str, runs: Mapping[str, Facts]) -> Metric:
    for run, facts in runs.items():
        if name in facts.values:
            family.add_metric([run], facts.values[name])
    filled: Metric = family
    return filled


def _section(config: Any, name: str) -> Mapping[str, Any]:
    section = config.get(name) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal stops it, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.kubeflow.exporter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="local folder or s3://bucket/prefix that holds the runs")
    parser.add_argument("--port", type=int, default=9464, help="port to listen on (default: %(default)s)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two readings (default: %(default)s)")
    given = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    progress = Progress()
    try:
        exporter = Exporter(open_storage(given.workdir), progress)
    except DarkroomError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it, not a log collector
        return error.exit_code
    registry = CollectorRegistry()
    registry.register(exporter)
    server, thread = start_http_server(given.port, registry=registry)
    progress.event("listening", port=server.server_port)
    while not stop.is_set():
        exporter.refresh()
        stop.wait(given.every)
    server.shutdown()
    server.server_close()
    thread.join()
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
