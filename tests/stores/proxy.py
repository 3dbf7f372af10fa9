"""A real HTTP proxy in front of a store: it passes requests on, except those that are to fail."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

# Of one connection to the next, and not of the message (RFC 9110, section 7.6.1); the proxy has answered Expect itself.
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
# A client must have hung up by then: its time-out must be short enough for a test to wait for.
_PATIENCE = 30  # seconds


class Answer(NamedTuple):
    """A store's response."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class Exchange(BaseHTTPRequestHandler):
    """One connection; for each of its requests, a fault decides how it is answered."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def answer(self) -> None:
        """Handle one request of any method."""
        self.sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.proxy.next_fault(f"{self.command} {self.path}")(self)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def ask(self) -> Answer:
        """Pass a request on to the store."""
        store = http.client.HTTPConnection(self.server.proxy.store, timeout=_PATIENCE)
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                store.putheader(name, value)
        store.endheaders(self.sent)
        answered = store.getresponse()
        headers = [(name, value) for name, value in answered.getheaders() if name.lower() not in _HOP]
        answer = Answer(answered.status, answered.reason, headers, answered.read())
        store.close()
        return answer

    def send(self, answer: Answer, most: int | None = None) -> None:
        """Answer, with at most some bytes of the body, whatever the headers promise."""
        self.send_response_only(answer.status, answer.reason)
        promised = any(name.lower() == "content-length" for name, _ in answer.headers)
        for name, value in answer.headers + [("Content-Length", str(len(answer.body)))] * (not promised):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[:most])

    def hang_up(self, rudely: bool = False) -> None:
        """Close the connection with a TCP reset."""
        if rudely:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # before the server closes it in the regular way
        self.close_connection = True

    def wait_for_the_client_to_give_up(self) -> None:
        """Answer nothing until the client closes the connection."""
        self.connection.settimeout(_PATIENCE)
        self.rfile.read(1)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Fault = Callable[[Exchange], None]


def pass_on(exchange: Exchange) -> None:
    """No fault."""
    exchange.send(exchange.ask())


def refuse(status: int, code: str) -> Fault:
    """Answer with an error; the request never reaches the store."""

    def fault(exchange: Exchange) -> None:
        body = f"<Error><Code>{code}</Code><Message/></Error>".encode() * (exchange.command != "HEAD")
        exchange.send(Answer(status, code, [("Content-Type", "application/xml")], body))

    return fault


def lose_the_answer(exchange: Exchange) -> None:
    """Pass the request on, and reset the connection instead of answering."""
    exchange.ask()
    exchange.hang_up(rudely=True)


def reset(exchange: Exchange) -> None:
    """Reset the connection; the request never reaches the store."""
    exchange.hang_up(rudely=True)


def cut_short(exchange: Exchange) -> None:
    """Promise the whole body, send half of it and hang up."""
    answer = exchange.ask()
    exchange.send(answer, most=len(answer.body) // 2)
    exchange.hang_up()


def stall(exchange: Exchange) -> None:
    """Take the request and never answer."""
    exchange.wait_for_the_client_to_give_up()


def stall_midway(exchange: Exchange) -> None:
    """Send half of the body and then nothing."""
    answer = exchange.ask()
    exchange.send(answer, most=len(answer.body) // 2)
    exchange.wait_for_the_client_to_give_up()


ERROR_500 = refuse(500, "InternalError")
SLOW_DOWN = refuse(503, "SlowDown")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FlakyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: the tests are about clients that hang up."""


class FlakyProxy:
    """The proxy; a context in which it serves.

    Attributes:
        store: Host and port of the store.
        plan: What becomes of the next requests, in order; those after them pass.
        fault_of: What becomes of a request that nothing is planned for, by its method and path and its number.
        requests: Method and path of every request.
    """

    def __init__(self, endpoint: str) -> None:
        self.store = urlsplit(endpoint).netloc
        self.plan: deque[Fault] = deque()
        self.fault_of: Callable[[str, int], Fault] = lambda *_: pass_on
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), Exchange)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def next_fault(self, request: str) -> Fault:
        """Record a request, and return its fault."""
        with self._lock:
            self.requests.append(request)
            return self.plan.popleft() if self.plan else self.fault_of(request, len(self.requests))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
