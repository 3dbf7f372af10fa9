"""The launcher's copy of a run's jobs and pods, kept up to date by watchers; it also notes when to stop."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable
from queue import Empty
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

from components.errors import ConfigError
from pipeline.launch.api import ApiUnreachable, Cluster, Json, unreachable_message
from pipeline.launch.pods import GangPod
from pipeline.launch.watch import EventQueue, ObjectKind, Watcher, WatchEvent

_KINDS: tuple[ObjectKind, ...] = ("job", "pod")


class PodUpdate(NamedTuple):
    """A pod as it was reported, and whether the report says that it was deleted."""

    pod: GangPod
    is_deleted: bool


class ClusterObserver:
    """Follows the jobs and pods of one run; while it is open, SIGTERM and SIGINT only set `stop_requested`.

    Args:
        cluster: The cluster.
        label: Selects the jobs and pods of the run.
        clock: Seconds that never go backwards.
        stop_seconds: How long this process may wait for anything once it is asked to stop.
    """

    def __init__(
        self,
        cluster: Cluster,
        label: str,
        clock: Callable[[], float] = time.monotonic,
        stop_seconds: float = math.inf,
    ) -> None:
        self.stop_requested = False
        self._stop_by = math.inf
        self._stop_seconds = stop_seconds
        self._cluster = cluster
        self._clock = clock
        self._queue: EventQueue = EventQueue()
        self._watchers = [Watcher(cluster, kind, label, self._queue, cluster.sleep) for kind in _KINDS]
        self._objects: dict[ObjectKind, dict[str, Json]] = {kind: {} for kind in _KINDS}
        self._listed: set[ObjectKind] = set()
        self._unreachable_since: dict[ObjectKind, float] = {}
        self._pod_updates: deque[PodUpdate] = deque()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._request_stop)
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Process events for ``seconds``, or until there are no more of them.

        Returns:
            Whether the copy is complete and current; otherwise nothing should be decided.

        Raises:
            ApiUnreachable: If the API does not answer for too long.
            ConfigError: If it rejects a request.
        """
        until = self._clock() + seconds
        while (remaining := until - self._clock()) > 0:
            try:
                self._process(self._queue.get(timeout=remaining))
            except Empty:
                break
            if self._queue.empty() and self._is_complete:
                break
        return self._is_complete

    def job(self, uid: str) -> Json | None:
        """Return a job as it was last reported."""
        return self._objects["job"].get(uid)

    def has_pod(self, uid: str) -> bool:
        """Tell whether a pod exists, or an update of it has not been taken yet."""
        return uid in self._objects["pod"] or any(update.pod.uid == uid for update in self._pod_updates)

    def next_pod(self) -> GangPod | None:
        """Return the pod of the next update, as it was then; updates keep the order of the reports."""
        return self._pod_updates[0].pod if self._pod_updates else None

    def take_pod_update(self) -> PodUpdate:
        """Remove the next update and return it."""
        return self._pod_updates.popleft()

    @property
    def has_live_pods(self) -> bool:
        """Whether any pod of the run has not ended."""
        return any(GangPod.read(pod).ended_at is None for pod in self._objects["pod"].values())

    @property
    def must_stop_now(self) -> bool:
        """Whether this process was asked to stop so long ago that it must not wait any longer."""
        return self._clock() >= self._stop_by

    @property
    def _is_complete(self) -> bool:
        return self._listed == set(_KINDS) and not self._unreachable_since

    def _process(self, event: WatchEvent) -> None:
        if event.type == "stop":
            self.stop_requested = True
        elif event.type == "rejected":
            raise ConfigError(
                f"the cluster rejected the request to watch the training ({event.problem}); bind the chart's role for "
                "the launcher to this service account"
            )
        elif event.kind is not None:
            self._update(event.kind, event)

    def _update(self, kind: ObjectKind, event: WatchEvent) -> None:
        if event.type == "unreachable":
            since = self._unreachable_since.setdefault(kind, self._clock())
            if self._clock() - since >= self._cluster.patience:
                raise ApiUnreachable(unreachable_message(self._cluster.patience, event.problem))
            return
        self._unreachable_since.pop(kind, None)
        objects = self._objects[kind]
        if event.type == "listed":
            existing = {listed["metadata"]["uid"] for listed in event.objects}
            for uid in objects.keys() - existing:
                self._store(kind, objects[uid], is_deleted=True)
            self._listed.add(kind)
        for changed in sorted(event.objects, key=_creation_time):
            self._store(kind, changed, is_deleted=event.type == "deleted")

    def _store(self, kind: ObjectKind, changed: Json, is_deleted: bool) -> None:
        uid = changed["metadata"]["uid"]
        if is_deleted:
            self._objects[kind].pop(uid, None)
        else:
            self._objects[kind][uid] = changed
        if kind == "pod":
            self._pod_updates.append(PodUpdate(GangPod.read(changed), is_deleted))

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        # Another call of the API may be waiting right now.
        self._cluster.patience = min(self._cluster.patience, self._stop_seconds)
        self._stop_by = min(self._stop_by, self._clock() + self._stop_seconds)
        self._queue.put(WatchEvent("stop"))


def _creation_time(changed: Json) -> str:
    return str(changed["metadata"].get("creationTimestamp"))
