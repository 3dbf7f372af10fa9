"""The pollers against a real HTTP server that answers as the clouds' metadata servers do, and as they should not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from components.train.processes.notices import Aws, Azure, Gcp, Metadata, Poller, ReadNotice, source

Answer = tuple[int, str]
Route = Callable[[Mapping[str, str]], Answer]

ACTION = "GET /latest/meta-data/spot/instance-action"
ADVICE = "GET /latest/meta-data/events/recommendations/rebalance"
TOKEN = "PUT /latest/api/token"
PREEMPTED = "GET /computeMetadata/v1/instance/preempted"
EVENTS = "GET /metadata/scheduledevents?api-version=2020-07-01"
NAME = "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text"


class FakeMetadata:
    """A metadata server on the loopback address; what has no route is 404."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                request = f"{self.command} {self.path}"
                fake.requests.append(request)
                status, text = fake.routes.get(request, always(404))(dict(self.headers.items()))
                body = text.encode("utf-8", "surrogateescape")
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):  # the poller had read enough
                    self.wfile.write(body)

            do_GET = do_PUT = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeMetadata]:
    server = FakeMetadata()
    yield server
    server.close()


def always(status: int, text: str = "") -> Route:
    return lambda _headers: (status, text)


def needs(header: str, value: str, answer: Answer) -> Route:
    return lambda headers: answer if headers.get(header) == value else (403, "forbidden")


class Listener:
    """A poller, and what it reported."""

    def __init__(self, read_notice: ReadNotice) -> None:
        self.notices: list[str] = []
        self.troubles: list[str] = []
        self.poller = Poller(read_notice, self.notices.append, self.troubles.append, every=0.001)

    def poll(self, times: int = 1) -> Listener:
        for _ in range(times):
            self.poller.poll()
        return self


def aws(fake: FakeMetadata, rebalance: bool = False) -> Listener:
    fake.routes.setdefault(TOKEN, always(200, "secret"))
    return Listener(Aws(Metadata(fake.address, timeout=5), rebalance).read_notice)


def test_aws_asks_with_a_token_and_hears_of_the_reclaim(fake: FakeMetadata) -> None:
    listener = aws(fake)
    assert not listener.poll().notices
    answer = json.dumps({"action": "terminate", "time": "2026-11-05T08:22:00Z"})
    fake.routes[ACTION] = needs("X-aws-ec2-metadata-token", "secret", (200, answer))
    assert listener.poll().notices == ["aws: terminate at 2026-11-05T08:22:00Z"]
    assert not listener.troubles
    assert fake.requests.count(TOKEN) == 1, "the token serves for six hours"


def test_aws_gets_a_new_token_when_the_old_one_expires(fake: FakeMetadata) -> None:
    tokens = iter(["old", "new"])
    fake.routes[TOKEN] = lambda _headers: (200, next(tokens))
    fake.routes[ACTION] = lambda headers: (404, "") if headers["X-aws-ec2-metadata-token"] == "old" else (401, "")
    listener = aws(fake).poll()
    fake.routes[ACTION] = lambda headers: (
        (200, '{"action": "stop"}') if headers["X-aws-ec2-metadata-token"] == "new" else (401, "")
    )
    assert listener.poll().notices == ["aws: stop at None"]
    assert not listener.troubles


def test_a_rebalance_recommendation_counts_only_when_asked_for_and_new(fake: FakeMetadata) -> None:
    fake.routes[ADVICE] = always(200, '{"noticeTime": "2026-11-05T08:00:00Z"}')
    deaf, eager = aws(fake), aws(fake, rebalance=True)
    assert not deaf.poll(2).notices
    assert ADVICE not in fake.requests
    assert not eager.poll(2).notices, "a training started in spite of it would stop again and again"

    fake.routes[ADVICE] = always(200, '{"noticeTime": "2026-11-05T09:00:00Z"}')
    assert eager.poll().notices == ["aws: rebalance recommended at 2026-11-05T09:00:00Z"]

    fake.routes[ADVICE] = always(404)
    calm = aws(fake, rebalance=True).poll()
    fake.routes[ADVICE] = always(200, '{"noticeTime": "2026-11-05T08:00:00Z"}')
    assert calm.poll().notices


def test_gcp_hears_of_the_preemption(fake: FakeMetadata) -> None:
    listener = Listener(Gcp(Metadata(fake.address, timeout=5)).read_notice)
    fake.routes[PREEMPTED] = needs("Metadata-Flavor", "Google", (200, "FALSE"))
    assert not listener.poll().notices
    fake.routes[PREEMPTED] = needs("Metadata-Flavor", "Google", (200, "TRUE\n"))
    assert listener.poll().notices == ["gcp: preempted"]
    assert not listener.troubles


def test_gcp_says_when_the_path_is_hidden_as_on_gke(fake: FakeMetadata) -> None:
    listener = Listener(Gcp(Metadata(fake.address, timeout=5)).read_notice).poll(3)
    assert not listener.notices
    assert listener.troubles == ["GET /computeMetadata/v1/instance/preempted: status 404, expected 200"]


def scheduled(*events: Mapping[str, Any]) -> Route:
    return needs("Metadata", "true", (200, json.dumps({"DocumentIncarnation": 1, "Events": events})))


PREEMPT = {"EventType": "Preempt", "Resources": ["Gpu_3"], "EventStatus": "Scheduled", "NotBefore": "Mon, 19 Sep"}


def test_azure_hears_of_its_own_eviction_only(fake: FakeMetadata) -> None:
    listener = Listener(Azure(Metadata(fake.address, timeout=5)).read_notice)
    fake.routes[NAME] = needs("Metadata", "true", (200, "gpu_3"))
    fake.routes[EVENTS] = scheduled({**PREEMPT, "EventType": "Reboot"}, {**PREEMPT, "Resources": ["gpu_4"]})
    assert not listener.poll().notices
    fake.routes[EVENTS] = scheduled({**PREEMPT, "Resources": ["gpu_4"]}, PREEMPT)
    assert listener.poll().notices == ["azure: eviction not before Mon, 19 Sep"]
    assert not listener.troubles


def test_azure_takes_an_eviction_for_its_own_if_it_cannot_learn_its_name(fake: FakeMetadata) -> None:
    listener = Listener(Azure(Metadata(fake.address, timeout=5)).read_notice)
    fake.routes[NAME] = always(500)
    fake.routes[EVENTS] = scheduled(PREEMPT)
    assert listener.poll().notices


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize(
    "answer",
    [
        (500, "oops"),
        (503, ""),
        (302, ""),
        (200, ""),
        (200, "<html>captive portal</html>"),
        (200, "[]"),
        (200, "{}"),
        (200, '{"action": 7}'),
        (200, '{"Events": {"EventType": "Preempt"}}'),
        (200, '{"Events": ["Preempt"]}'),
        (200, "[" * 60_000),
        (200, "x" * 100_000),
        (200, b"\xff\xfe".decode("utf-8", "surrogateescape")),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][:12]!a}",
)
def test_nonsense_is_no_notice_and_no_error(fake: FakeMetadata, cloud: Any, answer: Answer) -> None:
    for route in (ACTION, ADVICE, PREEMPTED, EVENTS, NAME):
        fake.routes[route] = always(*answer)
    fake.routes[TOKEN] = always(200, "secret")
    listener = Listener(source(cloud, fake.address, rebalance=True)).poll(3)
    assert not listener.notices
    assert len(listener.troubles) == 1, "reported once, not every time"


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_server_that_is_not_there_or_never_answers_is_survived(fake: FakeMetadata, cloud: Any) -> None:
    closed = FakeMetadata()
    closed.close()
    listener = Listener(source(cloud, closed.address, rebalance=True)).poll(2)
    assert not listener.notices
    assert len(listener.troubles) == 1

    never = threading.Event()

    def silence(_headers: Mapping[str, str]) -> Answer:
        never.wait()
        return 200, ""

    fake.routes = dict.fromkeys((TOKEN, PREEMPTED, EVENTS), silence)
    silent = Metadata(fake.address, timeout=0.05)
    looks = {
        "aws": Aws(silent, rebalance=True).read_notice,
        "gcp": Gcp(silent).read_notice,
        "azure": Azure(silent).read_notice,
    }
    started = time.monotonic()
    listener = Listener(looks[cloud]).poll(2)
    never.set()
    assert time.monotonic() - started < 5
    assert listener.troubles == ["timed out"]


def test_trouble_is_reported_again_after_it_was_over(fake: FakeMetadata) -> None:
    listener = aws(fake)
    for status in (500, 500, 404, 404, 500):
        fake.routes[ACTION] = always(status)
        listener.poll()
    assert len(listener.troubles) == 2
    assert not listener.notices


def test_the_thread_asks_until_there_is_a_notice_and_no_longer(fake: FakeMetadata) -> None:
    listener, noticed = aws(fake), threading.Event()
    answers = iter([(404, ""), (500, ""), (404, ""), (200, '{"action": "terminate", "time": "soon"}')])
    fake.routes[ACTION] = lambda _headers: next(answers)
    poller = Poller(
        Aws(Metadata(fake.address, 5), False).read_notice, lambda _why: noticed.set(), listener.troubles.append, 0.001
    )
    poller.start()
    assert noticed.wait(timeout=30)
    assert fake.requests.count(ACTION) == 4


def test_a_proxy_of_the_environment_is_never_asked(fake: FakeMetadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    fake.routes[PREEMPTED] = always(200, "TRUE")
    assert Listener(source("gcp", fake.address, rebalance=False)).poll().notices


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999", "http://[::1", "http://nowhere.invalid"])
def test_an_address_that_leads_nowhere_is_survived(address: str) -> None:
    assert len(Listener(source("gcp", address, rebalance=False)).poll(2).troubles) == 1
