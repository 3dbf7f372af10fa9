"""What keeps a submitted job from running, as the cluster tells it: its warnings, and pods that nobody makes.

A job that waits for quota or for nodes is no obstacle, however long that takes. One that has its quota and still gets
no pods is: some controller rejects it, and will for ever.
"""

from __future__ import annotations

import re

from pipeline.launch.api import Cluster
from pipeline.launch.context import LaunchContext
from pipeline.launch.state import OpenAttempt

_SECONDS_BETWEEN_LOOKS = 30.0
# As much as Kubernetes keeps of the text of an event.
MAX_CHARACTERS = 1024
# A rejected value may be a whole JobSet; Kubernetes writes it before the reason, and cuts the text off behind it.
_INVALID_VALUE = re.compile(r"Invalid value: (?:[\[{].*[\]}]|[\[{].*$)", re.DOTALL)


class Obstacles:
    """Looks for what is in the way of a job, not too often.

    Args:
        cluster: Where the job is.
        context: The training; its progress receives each warning once.
    """

    def __init__(self, cluster: Cluster, context: LaunchContext) -> None:
        self._cluster = cluster
        self._progress = context.progress
        self._has_queue = context.settings.placement.queue is not None
        self._patience = context.settings.launch.unstarted_minutes * 60
        self._reported: dict[str, str] = {}
        self._next_look_at: float | None = None
        self._job_uid = ""
        self._admitted_at: float | None = None
        self._is_told = False

    def look(self, attempt: OpenAttempt, now: float, is_suspended: bool) -> float | None:
        """Report new warnings about an attempt's job, such as that no node has room.

        Args:
            attempt: The open attempt, whose nodes are waited for.
            now: Seconds since 1970.
            is_suspended: Whether somebody holds the job back; Kueue may do so with jobs that name no queue, too.

        Returns:
            Since when the job may have pods and has none; None if it has some, or must wait for its quota.
        """
        is_new = attempt.job.uid != self._job_uid
        if is_new:
            self._job_uid, self._admitted_at, self._is_told = attempt.job.uid, None, False
        if is_new or self._next_look_at is None or now >= self._next_look_at:
            self._next_look_at = now + min(_SECONDS_BETWEEN_LOOKS, self._patience / 2)
            self._report_warnings(attempt.job.name)
            if not attempt.gang.pods:
                is_queued = self._has_queue or is_suspended
                self._admitted_at = self._cluster.admitted_at(self._job_uid) if is_queued else attempt.requested_at
        if attempt.gang.pods or self._admitted_at is None:
            return None
        since = max(self._admitted_at, attempt.requested_at)
        if now - since >= self._patience / 2 and not self._is_told:
            self._is_told = True
            fields = {"admitted_seconds": round(now - since), "warnings": self.summary}
            self._progress.event("job-not-started", job=attempt.job.name, **fields)
        return since

    @property
    def summary(self) -> str:
        """All warnings that were reported, or that there were none."""
        return "; ".join(dict.fromkeys(self._reported.values())) or "the cluster has no warning about it"

    def _report_warnings(self, job: str) -> None:
        for identity, text in self._cluster.warnings(job):
            if identity not in self._reported:
                self._reported[identity] = legible(text)
                self._progress.event("cluster-warning", job=job, warning=legible(text))


def legible(text: str) -> str:
    """Return a warning with its reason, of at most `MAX_CHARACTERS`: without the value that it rejects."""
    short = _INVALID_VALUE.sub("Invalid value: …", text)
    return short if len(short) <= MAX_CHARACTERS else f"{short[: MAX_CHARACTERS - 1]}…"
