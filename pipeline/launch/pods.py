"""The pods of one gang, from their creation to their end, as the cluster's API reports them (pure).

When one pod of a training fails, JobSet deletes all of them and creates them anew. So the pods of one such start are
one attempt. How long it waited for nodes, pulled images and ran is read from the pods' own timestamps, so it is known
even if no launcher was watching.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self

from components.errors import ConfigError, DataError, Hung, OutOfMemory, Preempted
from pipeline.launch.policy import RestartKind, restart_kind

CONTAINER = "node"  # the name that Kubeflow Trainer gives the trainer's job and container
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

# A container with one of these waiting reasons never starts, unless a person fixes the cause. While an image cannot be
# pulled, a kubelet says ErrImagePull and ImagePullBackOff by turns: the two are one state.
STUCK_REASONS = frozenset(
    {
        *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
        *("RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"),
        *("CreateContainerConfigError", "CreateContainerError"),
    }
)
KILLED = 137
# Of pods that ended in the same second, the exit code that comes first here explains the end.
_CODES_BY_PRIORITY = [error.exit_code for error in (ConfigError, DataError, OutOfMemory, Preempted, Hung)]
_FATAL_CODES = (ConfigError.exit_code, DataError.exit_code)


@dataclass(frozen=True)
class GangPod:
    """One pod of a gang; times are in seconds since 1970, None if it has not happened.

    Attributes:
        name: The pod's name.
        job: The name of its TrainJob.
        uid: Its Kubernetes uid.
        restart: JobSet's number of the start that it belongs to.
        index: The node's number in the gang.
        created_at: When the pod was created.
        scheduled_at: When it was given a node.
        started_at: When its container was first started.
        ended_at: When its container, or the whole pod, ended.
        exit_code: The container's exit code.
        node_lost: Whether Kubernetes says that the pod was disrupted: its node was drained, preempted or lost.
        stuck_reason: Why the container cannot start, if it never will by itself.
        log_tail: The last lines that the container wrote, if Kubernetes reports them.
    """

    name: str
    job: str
    uid: str
    restart: int
    index: int
    created_at: float
    scheduled_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    node_lost: bool = False
    stuck_reason: str | None = None
    log_tail: str = ""

    @classmethod
    def read(cls, pod: Mapping[str, Any]) -> Self:
        """Read a pod as the API gives it; any part of its status may be missing."""
        meta, status = pod["metadata"], pod.get("status") or {}
        labels = meta.get("labels") or {}
        conditions = {
            condition["type"]: condition
            for condition in status.get("conditions") or ()
            if condition.get("status") == "True"
        }
        state, last_state = _container_states(status)
        terminated = state.get("terminated") or last_state.get("terminated") or {}
        running, waiting = state.get("running") or {}, state.get("waiting") or {}
        is_over = status.get("phase") in ("Failed", "Succeeded")
        ended_at = _optional_time(terminated.get("finishedAt"))
        if ended_at is None and is_over:
            ended_at = _optional_time(_latest_transition(conditions))
        reason = waiting.get("reason")
        return cls(
            name=meta["name"],
            job=str(labels.get(JOBSET_LABEL)),
            uid=meta["uid"],
            restart=_number(labels.get(RESTART_LABEL)),
            index=_number(labels.get(INDEX_LABEL)),
            created_at=_optional_time(meta.get("creationTimestamp")) or 0.0,
            scheduled_at=_optional_time((conditions.get("PodScheduled") or {}).get("lastTransitionTime")),
            started_at=_optional_time(terminated.get("startedAt") or running.get("startedAt")),
            ended_at=ended_at if is_over or terminated else None,
            exit_code=terminated.get("exitCode", KILLED if status.get("phase") == "Failed" else None),
            node_lost="DisruptionTarget" in conditions,
            stuck_reason=f"{reason}: {waiting.get('message', '')}".rstrip(": ") if reason in STUCK_REASONS else None,
            log_tail=str(terminated.get("message") or ""),
        )


@dataclass(frozen=True)
class Gang:
    """The pods of one attempt, by uid."""

    pods: Mapping[str, GangPod]

    def includes(self, pod: GangPod) -> bool:
        """Tell whether a pod belongs to this gang; a new pod does if it was created before any of the gang ended."""
        if not self.pods or pod.uid in self.pods:
            return True
        members = self.pods.values()
        if any(member.restart != pod.restart or member.index == pod.index for member in members):
            return False
        return all(member.ended_at is None or pod.created_at <= member.ended_at for member in members)

    def update(self, pod: GangPod) -> Gang:
        """Return the gang with the newest report of a pod; what earlier reports said and this one lacks is kept."""
        earlier = self.pods.get(pod.uid)
        if earlier is not None:
            missing = {name: value for name, value in asdict(earlier).items() if _is_empty(getattr(pod, name))}
            pod = replace(pod, **{**missing, "stuck_reason": pod.stuck_reason})
        return Gang({**self.pods, pod.uid: pod})

    def mark_deleted(self, uid: str, now: float) -> Gang:
        """Return the gang after a pod was deleted: it ended now, unless it had ended before."""
        pod = self.pods.get(uid)
        if pod is None or pod.ended_at is not None:
            return self
        return Gang({**self.pods, uid: replace(pod, ended_at=now, stuck_reason=None)})

    def ended_by(self, time: float) -> Gang:
        """Return the gang with the ends that were noticed late moved back to ``time``, when the next gang began."""
        late = {
            uid: replace(pod, ended_at=min(pod.ended_at, time))
            for uid, pod in self.pods.items()
            if pod.ended_at is not None and pod.exit_code is None
        }
        return Gang({**self.pods, **late})

    @property
    def is_over(self) -> bool:
        """Whether there were pods and all of them have ended."""
        return bool(self.pods) and not self.is_running

    @property
    def is_running(self) -> bool:
        """Whether any pod has not ended."""
        return any(pod.ended_at is None for pod in self.pods.values())

    @property
    def scheduled_nodes(self) -> int:
        """How many nodes the gang holds."""
        return sum(pod.scheduled_at is not None and pod.ended_at is None for pod in self.pods.values())

    @property
    def stuck_reason(self) -> str | None:
        """Why a container cannot start, with the pod's name."""
        return next((f"{pod.name}: {pod.stuck_reason}" for pod in self.pods.values() if pod.stuck_reason), None)

    @property
    def first_scheduled_at(self) -> float | None:
        """When the first pod was given a node; the gang costs money from then on."""
        return min((pod.scheduled_at for pod in self.pods.values() if pod.scheduled_at is not None), default=None)

    @property
    def last_started_at(self) -> float | None:
        """When the last container was started; the ranks only meet once all are there."""
        return max((pod.started_at for pod in self.pods.values() if pod.started_at is not None), default=None)

    @property
    def ended_at(self) -> float:
        """When the last pod ended."""
        return max(pod.ended_at or 0.0 for pod in self.pods.values())

    @property
    def node_lost(self) -> bool:
        """Whether any pod lost its node."""
        return any(pod.node_lost for pod in self.pods.values())

    @property
    def decisive_pod(self) -> GangPod | None:
        """The pod whose exit code explains why the gang ended; None if no exit code is known.

        An exit code that forbids a restart decides wherever it occurs. Otherwise the pod that failed first does, since
        the others are stopped because of it.
        """
        exited = [pod for pod in self.pods.values() if pod.exit_code is not None]
        fatal = [pod for pod in exited if pod.exit_code in _FATAL_CODES]
        candidates = fatal or [pod for pod in exited if pod.exit_code != 0] or exited
        return min(candidates, key=lambda pod: (pod.ended_at or 0.0, _priority(pod.exit_code), pod.index), default=None)

    @property
    def exit_code(self) -> int:
        """The exit code that explains why the gang ended."""
        pod = self.decisive_pod
        return KILLED if pod is None or pod.exit_code is None else pod.exit_code

    @property
    def restart_kind(self) -> RestartKind:
        """How the gang is restarted; see `pipeline.launch.policy.restart_kind`."""
        return restart_kind(self.exit_code, self.node_lost)


def startup_seconds(gang: Gang, requested_at: float) -> dict[str, float]:
    """Return the seconds before a gang ran: ``pending`` until it was given a node, ``pulling`` until all pods ran.

    Args:
        gang: All of its pods have ended.
        requested_at: When its nodes were requested, in seconds since 1970.
    """
    ended_at = max(gang.ended_at, requested_at)
    scheduled_at = _clamp(requested_at, gang.first_scheduled_at, ended_at)
    started_at = _clamp(scheduled_at, gang.last_started_at, ended_at)
    return {"pending": scheduled_at - requested_at, "pulling": started_at - scheduled_at}


def read_time(text: str) -> float:
    """Return a timestamp of the API in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def _is_empty(value: object) -> bool:
    return value is None or value is False or value == ""


def _clamp(low: float, value: float | None, high: float) -> float:
    return high if value is None else min(max(value, low), high)


def _priority(exit_code: int | None) -> int:
    return _CODES_BY_PRIORITY.index(exit_code) if exit_code in _CODES_BY_PRIORITY else len(_CODES_BY_PRIORITY)


def _container_states(status: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the trainer container's state, and its last state if it was started again."""
    for container in status.get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            return container.get("state") or {}, container.get("lastState") or {}
    return {}, {}


def _latest_transition(conditions: Mapping[str, Mapping[str, Any]]) -> str | None:
    times = (condition.get("lastTransitionTime") for condition in conditions.values())
    return max((time for time in times if time), default=None)


def _optional_time(text: str | None) -> float | None:
    return read_time(text) if text else None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
