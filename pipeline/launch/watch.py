"""Changes of objects as the cluster's API reports them: a list first, then a watch that resumes where it broke off."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from kubernetes import client
from kubernetes.watch.watch import iter_resp_lines

from pipeline.launch.api import CONNECTION_ERRORS, Cluster, Json, is_denial, is_transient
from pipeline.launch.render import GROUP, PLURAL, VERSION

ObjectKind = Literal["job", "pod"]

GONE = 410
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
# The API ends a watch after so long; a stream that is silent for even longer is broken.
_WATCH_SECONDS = 240
_READ_SECONDS = 300


class WatchEvent(NamedTuple):
    """One report of a watcher.

    Attributes:
        type: ``listed``: ``objects`` are all that exist; ``changed`` or ``deleted``: ``objects`` holds the one object;
            ``unreachable``: the API does not answer; ``connected``: it answers again; ``rejected``: it rejects the
            request, see ``problem``; ``stop``: this process was asked to stop.
        kind: The kind of the objects.
        objects: As the API gives them.
        problem: What went wrong.
    """

    type: Literal["listed", "changed", "deleted", "unreachable", "connected", "rejected", "stop"]
    kind: ObjectKind | None = None
    objects: tuple[Json, ...] = ()
    problem: str = ""


EventQueue = SimpleQueue[WatchEvent]


class Watcher:
    """Puts the changes of all objects of one kind that a label selects into a queue, from a thread of its own.

    Args:
        cluster: The cluster.
        kind: The kind of the objects.
        label: Label selector.
        queue: Receives the events.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: ObjectKind,
        label: str,
        queue: EventQueue,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._cluster = cluster
        self._kind: ObjectKind = kind
        self._label = label
        self._queue = queue
        self._sleep = sleep
        self._pause = _FIRST_PAUSE
        self._is_stopped = False
        self._has_listed = False

    def start(self) -> None:
        """Start to report."""
        threading.Thread(target=self._run, name=f"watch-{self._kind}", daemon=True).start()

    def stop(self) -> None:
        """Report nothing more."""
        self._is_stopped = True

    def _run(self) -> None:
        version: str | None = None
        while not self._is_stopped:
            try:
                version = self._list() if version is None else version
                for newer in self._watch(version):
                    version, self._pause = newer, _FIRST_PAUSE
                self._sleep(_FIRST_PAUSE)
            except client.ApiException as error:
                if error.status == GONE:
                    version = None  # the API has forgotten the changes since then: list all objects again
                elif is_transient(error.status) or (self._has_listed and is_denial(error)):
                    # An API server that has just come back denies everything until it has read its own rules.
                    self._wait(f"{error.status} {error.reason}")
                else:
                    self._put(
                        WatchEvent("rejected", self._kind, problem=f"{error.status} {error.reason}: {error.body}")
                    )
                    return
            except (*CONNECTION_ERRORS, ValueError) as error:  # ValueError: a line that broke off in its middle
                self._wait(str(error) or type(error).__name__)

    def _list(self) -> str:
        """Report all objects, and return the version to watch from."""
        request, arguments = self._request()
        answer = request(*arguments, label_selector=self._label, _request_timeout=30, _preload_content=False)
        listing: Json = json.loads(answer.data)
        self._has_listed = True
        self._put(WatchEvent("listed", self._kind, tuple(listing.get("items") or ())))
        return str(listing["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> Iterator[str]:
        """Report what changes after ``version``, and yield the version of each change.

        Raises:
            ApiException: If the API reports an error, in its answer or in the stream.
        """
        request, arguments = self._request()
        stream = request(
            *arguments,
            label_selector=self._label,
            resource_version=version,
            allow_watch_bookmarks=True,
            timeout_seconds=_WATCH_SECONDS,
            watch=True,
            _request_timeout=(10, _READ_SECONDS),
            _preload_content=False,
        )
        try:
            self._put(WatchEvent("connected", self._kind))
            for line in iter_resp_lines(stream):
                yield self._read(json.loads(line))
        finally:
            stream.close()
            stream.release_conn()

    def _read(self, event: Json) -> str:
        changed = event["object"]
        if event["type"] == "ERROR":
            raise client.ApiException(status=changed.get("code"), reason=changed.get("message"))
        if event["type"] != "BOOKMARK":
            self._put(WatchEvent("deleted" if event["type"] == "DELETED" else "changed", self._kind, (changed,)))
        return str(changed["metadata"]["resourceVersion"])

    def _request(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        namespace = self._cluster.namespace
        if self._kind == "job":
            return self._cluster.objects.list_namespaced_custom_object, (GROUP, VERSION, namespace, PLURAL)
        return self._cluster.core.list_namespaced_pod, (namespace,)

    def _wait(self, problem: str) -> None:
        self._put(WatchEvent("unreachable", self._kind, problem=problem))
        self._sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _put(self, event: WatchEvent) -> None:
        if not self._is_stopped:
            self._queue.put(event)
