"""What the cluster tells of objects as it happens: a list, then a watch that goes on where it broke off."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from kubernetes import client
from kubernetes.watch.watch import iter_resp_lines

from pipeline.launch.api import AWAY, Cluster, is_passing
from pipeline.launch.render import GROUP, PLURAL, VERSION

Kind = Literal["job", "pod"]
Json = dict[str, Any]

GONE = 410
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
# A stream without a word for so long is asked for anew, and one that does not even end then is broken.
_WATCH_SECONDS = 240
_READ_SECONDS = 300


class News(NamedTuple):
    """One thing that was told.

    Attributes:
        what: ``listed``: ``objects`` are all that exist; ``changed`` or ``deleted``: of ``objects``, the one;
            ``away``: the API does not answer; ``back``: it does again; ``refused``: it will not, ``problem`` says why;
            ``stop``: somebody asks this process to end.
        kind: Of which objects.
        objects: As the API gives them.
        problem: What is wrong.
    """

    what: Literal["listed", "changed", "deleted", "away", "back", "refused", "stop"]
    kind: Kind | None = None
    objects: tuple[Json, ...] = ()
    problem: str = ""


Inbox = SimpleQueue[News]


class Feed:
    """Puts into an inbox what happens to the objects of one kind that a label selects, from a thread of its own.

    Args:
        cluster: Where.
        kind: Which objects.
        label: Label selector.
        inbox: Takes the news.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, cluster: Cluster, kind: Kind, label: str, inbox: Inbox, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._cluster = cluster
        self._kind: Kind = kind
        self._label = label
        self._inbox = inbox
        self._sleep = sleep
        self._pause = _FIRST_PAUSE
        self._ended = False

    def start(self) -> None:
        """Tell from now on."""
        threading.Thread(target=self._run, name=f"feed-{self._kind}", daemon=True).start()

    def stop(self) -> None:
        """Tell nothing more."""
        self._ended = True

    def _run(self) -> None:
        version: str | None = None
        while not self._ended:
            try:
                version = self._list() if version is None else version
                for newer in self._watch(version):
                    version, self._pause = newer, _FIRST_PAUSE
                self._sleep(_FIRST_PAUSE)
            except client.ApiException as error:
                if error.status == GONE:
                    version = None  # too much has happened meanwhile: look at all of it anew
                elif is_passing(error.status):
                    self._wait(f"{error.status} {error.reason}")
                else:
                    self._tell(News("refused", self._kind, problem=f"{error.status} {error.reason}: {error.body}"))
                    return
            except (*AWAY, ValueError) as error:  # ValueError: a line that broke off in its middle
                self._wait(str(error) or type(error).__name__)

    def _list(self) -> str:
        call, arguments = self._call()
        listed = _plain(call(*arguments, label_selector=self._label, _request_timeout=30, _preload_content=False))
        self._tell(News("listed", self._kind, tuple(listed.get("items") or ())))
        return str(listed["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> Iterator[str]:
        """Yield the version of each thing that happened after ``version``.

        Raises:
            ApiException: Where the API says so, in its answer or in the stream.
        """
        call, arguments = self._call()
        stream = call(
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
            self._tell(News("back", self._kind))
            for line in iter_resp_lines(stream):
                yield self._hear(json.loads(line))
        finally:
            stream.close()
            stream.release_conn()

    def _hear(self, event: Json) -> str:
        found = event["object"]
        if event["type"] == "ERROR":
            raise client.ApiException(status=found.get("code"), reason=found.get("message"))
        if event["type"] != "BOOKMARK":
            self._tell(News("deleted" if event["type"] == "DELETED" else "changed", self._kind, (found,)))
        return str(found["metadata"]["resourceVersion"])

    def _call(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        namespace = self._cluster.namespace
        if self._kind == "job":
            return self._cluster.jobs.list_namespaced_custom_object, (GROUP, VERSION, namespace, PLURAL)
        return self._cluster.core.list_namespaced_pod, (namespace,)

    def _wait(self, problem: str) -> None:
        self._tell(News("away", self._kind, problem=problem))
        self._sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _tell(self, news: News) -> None:
        if not self._ended:
            self._inbox.put(news)


def _plain(answer: Any) -> Json:
    found = json.loads(answer.data)
    assert isinstance(found, dict)
    return found
