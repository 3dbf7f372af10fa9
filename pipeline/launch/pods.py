"""The pods of one gang, from their start to their end, as the cluster tells of them (pure).

JobSet starts all pods of a training again when one fails, so the pods of one start are one attempt. Their own
timestamps say when it waited, pulled images and ran: also where nobody was looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self

from components.errors import ConfigError, DataError, Hung, OutOfMemory, Preempted
from pipeline.launch.policy import fate

CONTAINER = "node"  # the name that Kubeflow Trainer gives the trainer's job and container
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

# A container that waits for one of these reasons waits for ever, unless a person mends what it names.
STUCK = frozenset(
    {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"}
)
KILLED = 137
# Which code tells, among those of pods that ended in the same second.
_TELLING = (ConfigError, DataError, OutOfMemory, Preempted, Hung)
_FATAL = (ConfigError.exit_code, DataError.exit_code)


@dataclass(frozen=True)
class Pod:
    """One machine's part of a gang; times are in seconds since 1970, None for what has not happened.

    Attributes:
        name: The pod's name.
        job: The name of its job.
        uid: Its identity.
        restart: JobSet's number of the gang's start.
        index: The machine's number in the gang.
        created: When the pod was made.
        scheduled: When it was given a machine.
        started: When its container was first started.
        ended: When its container, or all of the pod, had ended.
        code: The container's exit code.
        taken: Whether Kubernetes says that the pod was disrupted: drained, preempted, or its machine gone.
        stuck: What keeps the container from starting for good.
        said: The last lines that the container wrote, where Kubernetes tells.
    """

    name: str
    job: str
    uid: str
    restart: int
    index: int
    created: float
    scheduled: float | None = None
    started: float | None = None
    ended: float | None = None
    code: int | None = None
    taken: bool = False
    stuck: str | None = None
    said: str = ""

    @classmethod
    def read(cls, pod: Mapping[str, Any]) -> Self:
        """Read a pod as the API gives it, of which any part of the status may be missing."""
        meta, status = pod["metadata"], pod.get("status") or {}
        labels = meta.get("labels") or {}
        conditions = {one["type"]: one for one in status.get("conditions") or () if one.get("status") == "True"}
        state, last = _states(status)
        done = state.get("terminated") or last.get("terminated") or {}
        running = state.get("running") or {}
        over = status.get("phase") in ("Failed", "Succeeded")
        ended = _time(done.get("finishedAt")) or (_time(_latest(conditions)) if over else None)
        waiting = state.get("waiting") or {}
        reason = waiting.get("reason")
        return cls(
            name=meta["name"],
            job=str(labels.get(JOBSET_LABEL)),
            uid=meta["uid"],
            restart=_number(labels.get(RESTART_LABEL)),
            index=_number(labels.get(INDEX_LABEL)),
            created=_time(meta.get("creationTimestamp")) or 0.0,
            scheduled=_time((conditions.get("PodScheduled") or {}).get("lastTransitionTime")),
            started=_time(done.get("startedAt") or running.get("startedAt")),
            ended=ended if over or done else None,
            code=done.get("exitCode", KILLED if over and status.get("phase") == "Failed" else None),
            taken="DisruptionTarget" in conditions,
            stuck=f"{reason}: {waiting.get('message', '')}".rstrip(": ") if reason in STUCK else None,
            said=str(done.get("message") or ""),
        )


@dataclass(frozen=True)
class Gang:
    """The pods of one attempt, by uid."""

    pods: Mapping[str, Pod]

    @classmethod
    def load(cls, pods: Iterable[Mapping[str, Any]]) -> Self:
        """Return what `dump` wrote."""
        return cls({pod["uid"]: Pod(**pod) for pod in pods})

    def dump(self) -> list[dict[str, Any]]:
        """Return the pods as JSON values."""
        return [asdict(pod) for pod in self.pods.values()]

    def owns(self, pod: Pod) -> bool:
        """Tell whether a pod belongs to this gang: a new one does if it was made for it before any of it had ended."""
        if not self.pods or pod.uid in self.pods:
            return True
        known = self.pods.values()
        if any(one.restart != pod.restart or one.index == pod.index for one in known):
            return False
        return all(one.ended is None or pod.created <= one.ended for one in known)

    def seen(self, pod: Pod) -> Gang:
        """Return the gang with a pod as it is now; what was known before and is not told any more stays known."""
        known = self.pods.get(pod.uid)
        if known is not None:
            unsaid = {name: value for name, value in asdict(known).items() if _is_unsaid(getattr(pod, name))}
            pod = replace(pod, **{**unsaid, "stuck": pod.stuck})
        return Gang({**self.pods, pod.uid: pod})

    def gone(self, uid: str, now: float) -> Gang:
        """Return the gang once a pod has been deleted."""
        pod = self.pods.get(uid)
        if pod is None or pod.ended is not None:
            return self
        return Gang({**self.pods, uid: replace(pod, ended=now, stuck=None)})

    def ended_before(self, successor: float) -> Gang:
        """Return the gang without ends that were only noticed once the next gang had been made."""
        late = {
            uid: replace(pod, ended=min(pod.ended, successor))
            for uid, pod in self.pods.items()
            if pod.ended is not None and pod.code is None
        }
        return Gang({**self.pods, **late})

    @property
    def is_over(self) -> bool:
        """Whether there were pods and all of them have ended."""
        return bool(self.pods) and all(pod.ended is not None for pod in self.pods.values())

    @property
    def is_running(self) -> bool:
        """Whether any pod has not ended."""
        return any(pod.ended is None for pod in self.pods.values())

    @property
    def scheduled(self) -> int:
        """How many machines are there."""
        return sum(pod.scheduled is not None and pod.ended is None for pod in self.pods.values())

    @property
    def stuck(self) -> str | None:
        """What keeps a container from starting for good, with the pod's name."""
        return next((f"{pod.name}: {pod.stuck}" for pod in self.pods.values() if pod.stuck), None)

    @property
    def began_to_cost(self) -> float | None:
        """When the first machine was given."""
        return min((pod.scheduled for pod in self.pods.values() if pod.scheduled is not None), default=None)

    @property
    def began_to_run(self) -> float | None:
        """When the last container was started: ranks only meet once all are there."""
        times = [pod.started for pod in self.pods.values()]
        return max((time for time in times if time is not None), default=None)

    @property
    def ended(self) -> float:
        """When the last pod had ended."""
        return max(pod.ended or 0.0 for pod in self.pods.values())

    @property
    def taken(self) -> bool:
        """Whether a machine was taken away."""
        return any(pod.taken for pod in self.pods.values())

    @property
    def code(self) -> int:
        """The exit code that tells why the gang ended.

        A code that forbids a restart tells wherever it is; otherwise that of the pod that ended first, since the
        others are stopped because of it.
        """
        told = self._telling()
        return KILLED if told is None or told.code is None else told.code

    @property
    def fate(self) -> str:
        """How the gang goes on; see `pipeline.launch.policy.fate`."""
        return fate(self.code, self.taken)

    @property
    def said(self) -> str:
        """The last words of the pod that tells."""
        told = self._telling()
        return told.said if told is not None else ""

    @property
    def teller(self) -> Pod | None:
        """The pod whose exit code and last words tell why the gang ended."""
        return self._telling()

    def _telling(self) -> Pod | None:
        known = [pod for pod in self.pods.values() if pod.code is not None]
        fatal = [pod for pod in known if pod.code in _FATAL]
        failed = fatal or [pod for pod in known if pod.code != 0] or known
        return min(failed, key=lambda pod: (pod.ended or 0.0, _rank(pod.code), pod.index), default=None)


def gang_seconds(gang: Gang, asked: float) -> dict[str, float]:
    """Return the seconds before the gang ran: ``pending`` until a machine was given, ``pulling`` until all ran.

    Args:
        gang: All of its pods have ended.
        asked: When its machines were asked for, in seconds since 1970.
    """
    ended = max(gang.ended, asked)
    costs = _between(asked, gang.began_to_cost, ended)
    runs = _between(costs, gang.began_to_run, ended)
    return {"pending": costs - asked, "pulling": runs - costs}


def _is_unsaid(value: object) -> bool:
    return value is None or value is False or value == ""


def _between(low: float, value: float | None, high: float) -> float:
    return high if value is None else min(max(value, low), high)


def _rank(code: int | None) -> int:
    known = [error.exit_code for error in _TELLING]
    return known.index(code) if code in known else len(known)


def _states(status: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the container's state, and its last one where it was started again."""
    for container in status.get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            return container.get("state") or {}, container.get("lastState") or {}
    return {}, {}


def _latest(conditions: Mapping[str, Mapping[str, Any]]) -> str | None:
    return max(
        (one["lastTransitionTime"] for one in conditions.values() if one.get("lastTransitionTime")), default=None
    )


def read_time(text: str) -> float:
    """Return a time that the API tells, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def _time(text: str | None) -> float | None:
    return read_time(text) if text else None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
