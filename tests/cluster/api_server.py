"""A Kubernetes API server in this process: objects with resource versions, label selectors, and watches that stream.

It does not know what objects mean; see `tests.cluster.operators`. It can be unreachable, forget its history (410),
break streams in the middle of a line, and answer with errors.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
BOOKMARK_SECONDS = 0.2
NAMESPACE = "lab"


class Refusal(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {"kind": "Status", "code": code, "reason": reason, "message": message}


class Store:
    """All objects and the history of their changes; every method may be called from any thread.

    Attributes:
        clock: The cluster's clock, in seconds since 1970.
        whole_seconds: Whether times are written as the API does. A test that does not last for seconds needs more.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.time
        self.whole_seconds = False
        self.changed = threading.Condition()
        self.version = 100
        self.oldest_version = 100
        self.history: list[tuple[int, str, str, Json]] = []  # version, plural, kind of change, object
        self.objects: dict[str, dict[str, Json]] = {}

    def now(self) -> str:
        """Return the time as objects hold it."""
        moment = datetime.fromtimestamp(self.clock(), UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if self.whole_seconds else moment.isoformat()

    def create(self, plural: str, item: Json) -> Json:
        with self.changed:
            name = item["metadata"]["name"]
            if name in self.objects.setdefault(plural, {}):
                raise Refusal(409, "AlreadyExists", f"{plural} {name!r} already exists")
            created = copy.deepcopy(item)
            server_fields = {"uid": str(uuid.uuid4()), "creationTimestamp": self.now(), "namespace": NAMESPACE}
            created["metadata"] |= server_fields
            return self._put(plural, "ADDED", created)

    def update(self, plural: str, name: str, change: Callable[[Json], None]) -> Json | None:
        with self.changed:
            if name not in self.objects.get(plural, {}):
                return None
            changed = copy.deepcopy(self.objects[plural][name])
            change(changed)
            return self._put(plural, "MODIFIED", changed)

    def delete(self, plural: str, name: str, uid: str | None = None) -> Json:
        with self.changed:
            item = self.get(plural, name)
            if uid is not None and item["metadata"]["uid"] != uid:
                raise Refusal(409, "Conflict", "the UID in the precondition does not match")
            return self._put(plural, "DELETED", copy.deepcopy(item))

    def get(self, plural: str, name: str) -> Json:
        with self.changed:
            if name not in self.objects.get(plural, {}):
                raise Refusal(404, "NotFound", f"{plural} {name!r} not found")
            return self.objects[plural][name]

    def list(self, plural: str, selector: str = "") -> list[Json]:
        with self.changed:
            return [item for item in self.objects.get(plural, {}).values() if matches(item, selector)]

    def forget(self) -> None:
        """Compact the history: a watch of an older version is answered with 410."""
        with self.changed:
            self.history.clear()
            self.version += 1
            self.oldest_version = self.version

    def _put(self, plural: str, change: str, item: Json) -> Json:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        name = item["metadata"]["name"]
        if change == "DELETED":
            del self.objects[plural][name]
        else:
            self.objects.setdefault(plural, {})[name] = item
        self.history.append((self.version, plural, change, item))
        self.changed.notify_all()
        return item


def matches(item: Json, selector: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, _, value in (one.partition("=") for one in selector.split(",") if one))


class ApiServer:
    """Serves a store over HTTP at `url`; tests make it fail.

    Attributes:
        store: The objects.
        logs: The log of each pod.
        requests: Method and path of every request, in order.
        before: Called with both before each request is carried out; may raise `Refusal`.
        after: Called with both after each request was carried out, before it is answered.
        cold_answers: How many requests are rejected with 403 after a restart: its caches of rights are not filled yet.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.logs: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        self.epoch = 0  # raised to break all streams
        self.torn = False
        self.cold_answers = 2
        self._cold = iter(range(0))
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        api = self

        class Handler(_Handler):
            server_api = api

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()

    def stop(self) -> None:
        """Become unreachable: reject new connections and break the open ones."""
        if self._server is None:
            return
        self.break_streams(torn=True)
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self._cold = iter(range(self.cold_answers))

    def check_rights(self, method: str, path: str) -> None:
        """Reject a request of the first ones after a restart."""
        if next(self._cold, None) is not None:
            raise Refusal(403, "Forbidden", f'User "launcher" cannot {method.lower()} {path.rpartition("/")[2]}')

    def break_streams(self, torn: bool = False) -> None:
        """End all watches, if ``torn`` in the middle of a line."""
        with self.store.changed:
            self.torn = torn
            self.epoch += 1
            self.store.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_api: ApiServer

    def _serve(self) -> None:
        api, address = self.server_api, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        api.requests.append((self.command, address.path))
        try:
            api.check_rights(self.command, address.path)
            api.before(self.command, address.path)
            if query.get("watch") in ("true", "True"):
                self._stream(_plural(address.path), query)
                return
            answer = self._answer(address.path.strip("/").split("/"), query, body)
            api.after(self.command, address.path)
        except Refusal as refusal:
            self._send(refusal.code, refusal.status)
            return
        self._send(200, answer)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _answer(self, path: list[str], query: dict[str, str], body: Json) -> Any:
        store = self.server_api.store
        parts = path[path.index("namespaces") + 2 :]
        plural, name = parts[0], parts[1] if len(parts) > 1 else None
        if name is None and self.command == "POST":
            return store.create(plural, body)
        if name is None:
            with store.changed:
                items, version = store.list(plural, query.get("labelSelector", "")), str(store.version)
            return {"kind": "List", "metadata": {"resourceVersion": version}, "items": items}
        if parts[2:] == ["log"]:
            store.get(plural, name)
            return self.server_api.logs.get(name, "")
        if self.command == "PATCH":
            merged = store.update(plural, name, lambda item: _merge(item, body))
            if merged is None:
                raise Refusal(404, "NotFound", f"{plural} {name!r} not found")
            return merged
        if self.command == "DELETE":
            return store.delete(plural, name, (body.get("preconditions") or {}).get("uid"))
        return store.get(plural, name)

    def _stream(self, plural: str, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in self._changes(plural, query):
                data = json.dumps(line).encode() + b"\n"
                self._chunk(data)
            if self.server_api.torn:
                self._chunk(b'{"type": "MODIFIED", "obj')
                self.close_connection = True
                return
            self._chunk(b"")
        except OSError:
            self.close_connection = True

    def _changes(self, plural: str, query: dict[str, str]) -> Iterator[Json]:
        api, store = self.server_api, self.server_api.store
        version, selector, epoch = int(query["resourceVersion"]), query.get("labelSelector", ""), api.epoch
        with store.changed:
            if version < store.oldest_version:
                gone = Refusal(410, "Expired", f"too old resource version: {version} ({store.oldest_version})")
                yield {"type": "ERROR", "object": gone.status}
                return
        until = time.monotonic() + float(query.get("timeoutSeconds", 3600))
        while time.monotonic() < until:
            with store.changed:
                changes = [change for change in store.history if change[0] > version]
                if not changes:
                    store.changed.wait(BOOKMARK_SECONDS)
                    changes = [change for change in store.history if change[0] > version]
                if api.epoch != epoch:
                    return
                version = max(version, store.version)
            for _version, item_plural, change, item in changes:
                if item_plural == plural and matches(item, selector):
                    yield {"type": change, "object": item}
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, code: int, answer: Any) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        try:
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _plural(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[parts.index("namespaces") + 2]


def _merge(target: Json, change: Json) -> None:
    """Apply an RFC 7386 merge patch."""
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = value
