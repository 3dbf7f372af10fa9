"""What the launcher sees of the cluster at a moment: jobs and pods by the newest news of them, and who asks to stop."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable
from queue import Empty
from types import FrameType, TracebackType
from typing import Any, Self

from components.errors import ConfigError
from pipeline.launch.api import ApiAway, Cluster, away
from pipeline.launch.pods import Pod
from pipeline.launch.watch import Feed, Inbox, Json, Kind, News

_FEEDS: tuple[Kind, ...] = ("job", "pod")


class View:
    """The picture of one run's objects; while it is open, SIGTERM and SIGINT only set `asked`.

    Args:
        cluster: Where.
        label: Selects the jobs and pods of the run.
        clock: Seconds that never go backwards.
    """

    def __init__(self, cluster: Cluster, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.label = label
        self.asked = False
        self._clock = clock
        self._patience = cluster.patience
        self._inbox: Inbox = Inbox()
        self._feeds = [Feed(cluster, kind, label, self._inbox) for kind in _FEEDS]
        self._objects: dict[Kind, dict[str, Json]] = {kind: {} for kind in _FEEDS}
        self._listed: set[Kind] = set()
        self._away: dict[Kind, float] = {}
        self._pods: deque[tuple[Pod, bool]] = deque()
        self._kept: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._kept[number] = signal.signal(number, self._ask)
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for feed in self._feeds:
            feed.stop()
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Take in the news, for ``seconds`` or until there is no more of it.

        Returns:
            Whether all is known; otherwise nothing should be decided.

        Raises:
            ApiAway: Where the API does not answer for too long.
            ConfigError: Where it refuses.
        """
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            try:
                self._take(self._inbox.get(timeout=left))
            except Empty:
                break
            if self._inbox.empty() and self._is_whole:
                break
        return self._is_whole

    def job(self, uid: str) -> Json | None:
        """Return a job as it was last told of."""
        return self._objects["job"].get(uid)

    def has_pod(self, uid: str) -> bool:
        """Tell whether a pod is there, or something that was told of it has not been taken yet."""
        return uid in self._objects["pod"] or any(pod.uid == uid for pod, _deleted in self._pods)

    def peek(self) -> Pod | None:
        """Return the pod that was told of next, as it was then; they come in the order in which they were told."""
        return self._pods[0][0] if self._pods else None

    def take(self) -> tuple[Pod, bool]:
        """Take that pod away, and tell whether it was deleted."""
        return self._pods.popleft()

    @property
    def living(self) -> frozenset[str]:
        """The uids of all pods of the run that have not ended."""
        pods = (Pod.read(pod) for pod in self._objects["pod"].values())
        return frozenset(pod.uid for pod in pods if pod.ended is None)

    @property
    def _is_whole(self) -> bool:
        return self._listed == set(_FEEDS) and not self._away

    def _take(self, news: News) -> None:
        if news.what == "stop":
            self.asked = True
        elif news.what == "refused":
            raise ConfigError(
                f"the cluster refuses to tell of the training ({news.problem}); the chart's role for the launcher "
                "must be bound to this service account"
            )
        elif news.kind is not None:
            self._update(news.kind, news)

    def _update(self, kind: Kind, news: News) -> None:
        if news.what == "away":
            since = self._away.setdefault(kind, self._clock())
            if self._clock() - since >= self._patience:
                raise ApiAway(away(self._patience, news.problem))
            return
        self._away.pop(kind, None)
        objects = self._objects[kind]
        if news.what == "listed":
            there = {found["metadata"]["uid"] for found in news.objects}
            for uid in objects.keys() - there:
                self._note(kind, objects[uid], deleted=True)
            self._listed.add(kind)
        for found in sorted(news.objects, key=lambda one: str(one["metadata"].get("creationTimestamp"))):
            self._note(kind, found, deleted=news.what == "deleted")

    def _note(self, kind: Kind, found: Json, deleted: bool) -> None:
        uid = found["metadata"]["uid"]
        if deleted:
            self._objects[kind].pop(uid, None)
        else:
            self._objects[kind][uid] = found
        if kind == "pod":
            self._pods.append((Pod.read(found), deleted))

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._inbox.put(News("stop"))
