"""Trainings whose checkpoints go to an S3 store behind a slow line: what a notice costs, and what its absence costs."""

from __future__ import annotations

import contextlib
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from components.errors import Preempted
from components.model import checkpoints
from components.storage.open import open_storage

pytestmark = pytest.mark.slow

INTERVAL = 20
SLOW = 500_000  # bytes per second: a checkpoint of 1.2 MB takes more than two seconds, some thirty steps
SETTINGS = ("steps=100000", f"checkpoint.every={INTERVAL}")


class SlowLine(socketserver.ThreadingTCPServer):
    """A TCP proxy that lets through so many bytes a second of what clients send, over all connections together."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.target = target
        self.bytes_per_second = inf
        self._turn = threading.Lock()

    def carry(self, data: bytes) -> None:
        with self._turn:
            time.sleep(len(data) / self.bytes_per_second)


class Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, SlowLine)
        with socket.create_connection(self.server.target) as store:
            back = threading.Thread(target=_copy, args=(store, self.request, lambda _data: None), daemon=True)
            back.start()
            _copy(self.request, store, self.server.carry)
            back.join()


def _copy(source: socket.socket, sink: socket.socket, carry: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(8192):
            carry(data)
            sink.sendall(data)
    for end, how in ((source, socket.SHUT_RD), (sink, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


@dataclass(frozen=True)
class Far:
    """The workshop, with its workdir in an S3 store at the end of a line."""

    workshop: Any
    line: SlowLine


@pytest.fixture(scope="module")
def far(workshop: Any) -> Iterator[Far]:
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    line = SlowLine(store.get_host_and_port())
    thread = threading.Thread(target=line.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{line.server_address[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        environment.setenv("AWS_REGION", "us-east-1")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="far")
        workdir = open_storage("s3://far/work")
        for entry in workshop.workdir.list():
            if not entry.key.startswith("runs/"):
                workdir.write(entry.key, workshop.workdir.read(entry.key))
        yield Far(replace(workshop, workdir=workdir), line)
        client.close()
    line.shutdown()
    thread.join()
    line.server_close()
    store.stop()


class Stop:
    """Asks a rank to stop when a save has just begun, and remembers when that was."""

    def __init__(self, far: Far, from_then_on: float, number: signal.Signals = signal.SIGTERM) -> None:
        self._line = far.line
        self._bytes_per_second = from_then_on
        self._number = number
        self.asked = inf

    def __call__(self, gang: Any) -> None:
        self._line.bytes_per_second = self._bytes_per_second
        self.asked = time.monotonic()
        for rank in gang.ranks if self._number == signal.SIGKILL else [1]:
            gang.signal(rank, self._number)


def begins_to_save(step: int) -> Callable[[Any, dict[str, Any]], bool]:
    return lambda _gang, event: event.get("event") == "checkpoint" and event["step"] == step


def test_a_notice_during_a_slow_save_loses_nothing_and_is_over_within_ten_seconds(far: Far) -> None:
    far.line.bytes_per_second = SLOW
    stop = Stop(far, from_then_on=SLOW)
    ended = far.workshop.train_until("slow", *SETTINGS, hear=begins_to_save(2 * INTERVAL), act=stop)
    seconds = time.monotonic() - stop.asked
    assert ended.code == Preempted.exit_code, ended.output
    assert seconds < 10, "although two checkpoints had to go through the line"

    run = far.workshop.run("slow")
    saved = checkpoints.newest(run)
    assert saved is not None
    saved.verify()
    assert len(saved.parts) == 2, "every rank saved this step"
    assert [event["step"] for event in ended.events_named("preempted")] == [saved.step]
    assert max(line["step"] for line in run.read_lines("metrics.jsonl")) == saved.step
    last = ended.events_named("checkpoint")[-1]
    assert last["step"] == saved.step
    assert last["stall_seconds"] > 1.5, "or the line was not slow"


@pytest.mark.proof
def test_a_save_that_cannot_be_done_in_time_is_given_up_and_the_one_before_stands(far: Far) -> None:
    far.line.bytes_per_second = inf
    stop = Stop(far, from_then_on=SLOW / 20)  # one checkpoint takes most of a minute now
    ended = far.workshop.train(
        "too-slow", *SETTINGS, "limits.stop_grace_seconds=4", at_step=2 * INTERVAL + INTERVAL // 2, act=stop
    )
    assert ended.code == Preempted.exit_code, ended.output
    assert time.monotonic() - stop.asked < 8, "the rank that nobody asked ends as soon as the one that was"
    assert {event["rank"] for event in ended.events_named("stop-unsaved")} == {0, 1}
    assert [event["rank"] for event in ended.events_named("stop-asked")] == [1]
    far.line.bytes_per_second = inf
    saved = checkpoints.newest(far.workshop.run("too-slow"))
    assert saved is not None
    saved.verify()
    done = max(event["step"] for event in ended.events_named("step"))
    assert done - saved.step <= INTERVAL


@pytest.mark.proof
def test_without_a_notice_no_more_than_an_interval_is_lost(far: Far) -> None:
    """The worst moment: a save has begun, and is not committed."""
    far.line.bytes_per_second = SLOW
    stop = Stop(far, from_then_on=SLOW, number=signal.SIGKILL)
    ended = far.workshop.train_until("killed", *SETTINGS, hear=begins_to_save(3 * INTERVAL), act=stop)
    assert ended.code == 128 + signal.SIGKILL
    far.line.bytes_per_second = inf
    saved = checkpoints.newest(far.workshop.run("killed"))
    assert saved is not None
    saved.verify()
    assert saved.step == 2 * INTERVAL, "the next save begins when the one before is committed"
