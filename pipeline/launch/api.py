"""The cluster's API as the launcher uses it: TrainJobs, their pods and what is told of them, with patience.

Each call is tried again while the API is away or overloaded. What the API refuses for good ends the launch with the
API's own words and what to do about it.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config

from components.errors import ConfigError, DarkroomError, StorageError
from pipeline.launch.pods import CONTAINER
from pipeline.launch.render import GROUP, PLURAL, VERSION, Owner

T = TypeVar("T")
Json = dict[str, Any]

# What a connection raises when there is none, or when it breaks.
AWAY = (urllib3.exceptions.HTTPError, http.client.HTTPException, ConnectionError, TimeoutError)
_TIMEOUT_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_LOG_LINES = 40


class ApiAway(StorageError):
    """The cluster's API cannot be reached; what runs there goes on, start again to follow it."""


class Cluster:
    """The objects of one namespace.

    Args:
        api: The connection.
        namespace: Where the training runs.
        patience: Seconds that the API may be away.
        sleep: Waits so many seconds.
        clock: Seconds that never go backwards.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        patience: float,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.namespace = namespace
        self.patience = patience
        self.jobs = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)
        self._sleep = sleep
        self._clock = clock
        self._where = (GROUP, VERSION, namespace, PLURAL)

    def create(self, job: Json) -> Json | None:
        """Create a job; None where there is one of that name."""
        try:
            made: Json = self._call("create a TrainJob", self.jobs.create_namespaced_custom_object, *self._where, job)
        except client.ApiException as error:
            if error.status == 409:
                return None
            raise self._refused("create a TrainJob", error) from None
        return made

    def find(self, name: str) -> Json | None:
        """Return a job; None where there is none of that name."""
        return self._find(f"read TrainJob {name}", self.jobs.get_namespaced_custom_object, *self._where, name)

    def find_all(self, label: str) -> list[Json]:
        """Return the jobs that a label selects."""
        what = "list TrainJobs"
        listed = self._find(what, self.jobs.list_namespaced_custom_object, *self._where, label_selector=label)
        if listed is None:
            raise ConfigError(
                f"this cluster does not know {PLURAL}.{GROUP}/{VERSION}; install Kubeflow Trainer 2.3 or later"
            )
        return list(listed["items"])

    def has_jobset(self, name: str) -> bool:
        """Tell whether there is still the JobSet of a job, which may make pods.

        Where it may not be read, the pods alone must tell.
        """
        where = ("jobset.x-k8s.io", "v1alpha2", self.namespace, "jobsets", name)
        try:
            self._call(f"read JobSet {name}", self.jobs.get_namespaced_custom_object, *where)
        except client.ApiException as error:
            if error.status in (403, 404):
                return False
            raise self._refused(f"read JobSet {name}", error) from None
        return True

    def patch(self, name: str, change: Mapping[str, Any]) -> Json | None:
        """Merge a change into a job; None where it is gone."""
        return self._find(
            f"change TrainJob {name}", self.jobs.patch_namespaced_custom_object, *self._where, name, change
        )

    def delete(self, name: str, uid: str) -> None:
        """Delete a job with all that it made; another one that has taken its name meanwhile stays.

        In the background: Kubeflow Trainer 2.3 makes the JobSet of a job anew that waits in the foreground for it to
        go.
        """
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._call("delete a TrainJob", self.jobs.delete_namespaced_custom_object, *self._where, name, body=options)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise self._refused(f"delete TrainJob {name}", error) from None

    def log(self, pod: str) -> str:
        """Return the last lines of a pod's log; empty where they cannot be had any more."""
        try:
            return str(
                self.core.read_namespaced_pod_log(
                    pod, self.namespace, container=CONTAINER, tail_lines=_LOG_LINES, _request_timeout=_TIMEOUT_SECONDS
                )
            )
        except (client.ApiException, *AWAY):
            return ""

    def warnings(self, about: str) -> list[tuple[str, str]]:
        """Return what the cluster warns of objects whose names hold ``about``: identity and text of each warning."""
        try:
            listed = self.core.list_namespaced_event(
                self.namespace, field_selector="type=Warning", limit=500, _request_timeout=_TIMEOUT_SECONDS
            )
        except (client.ApiException, *AWAY):
            return []  # they only help
        found = [event for event in listed.items if about in (event.involved_object.name or "")]
        return [(f"{event.metadata.uid} {event.count}", f"{event.reason}: {event.message}") for event in found]

    def owner(self, environment: Mapping[str, str]) -> Owner | None:
        """Return the Argo Workflow that this pod belongs to; None where it is no pod of one."""
        name = environment.get("KFP_POD_NAME")
        if not name:
            return None
        pod = self._find(f"read pod {name}", self.core.read_namespaced_pod, name, self.namespace)
        for owner in (pod.metadata.owner_references or ()) if pod is not None else ():
            if owner.kind == "Workflow":
                return Owner(owner.name, owner.uid)
        return None

    def _find(self, what: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        try:
            return self._call(what, call, *arguments, **options)
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise self._refused(what, error) from None

    def _call(self, what: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call the API until it answers.

        Raises:
            ApiException: Where it refuses.
            ApiAway: Where it does not answer for too long.
        """
        began, pause = self._clock(), _FIRST_PAUSE
        while True:
            try:
                return call(*arguments, **options, _request_timeout=_TIMEOUT_SECONDS)
            except AWAY as error:
                problem = str(error)
            except client.ApiException as error:
                if not is_passing(error.status):
                    raise
                problem = f"{error.status} {error.reason}: {_said(error)}"
            if self._clock() - began + pause > self.patience:
                raise ApiAway(away(self.patience, f"{what}: {problem}"))
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refused(self, what: str, error: client.ApiException) -> DarkroomError:
        said = f"the cluster refuses to {what} in namespace {self.namespace}: {error.status} {_said(error)}"
        if error.status in (401, 403):
            return ConfigError(f"{said}; the chart's role for the launcher must be bound to this service account")
        if error.status == 404:
            return ConfigError(f"{said}; install Kubeflow Trainer 2.3 or later, and create the namespace")
        return ConfigError(f"{said}; see placement and the TrainingRuntime that it names")


def connect(namespace: str | None, patience: float) -> Cluster:
    """Connect as a pod does, or as kubectl would outside of a cluster.

    Raises:
        ConfigError: Where there is neither.
    """
    api = client.ApiClient
    settings = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=settings)
            here = _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.exists() else "default"
        else:
            config.load_kube_config(client_configuration=settings)
            here = config.list_kube_config_contexts()[1]["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise ConfigError(f"no cluster is known here: {error}; set KUBECONFIG, or launch.where to local") from None
    settings.retries = urllib3.Retry(0)  # `Cluster` has the patience
    return Cluster(api(settings), namespace or here, patience)


def is_passing(status: int | None) -> bool:
    """Tell whether an answer says that the API is overloaded or broken, and not that it refuses."""
    return status in (None, 0, 408, 429) or (status is not None and status >= 500)


def away(patience: float, problem: str) -> str:
    """Return what to tell when the API has been away for too long."""
    return (
        f"the cluster's API has been away for {patience / 60:g} minutes ({problem}); what runs there goes on: start "
        "again to follow it, or raise launch.api_away_minutes"
    )


def _said(error: client.ApiException) -> str:
    """Return the API's own words."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
