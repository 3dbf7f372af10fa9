"""The cluster's API as the launcher uses it: TrainJobs, their pods, logs and events.

A call is repeated while the API is unreachable or overloaded, or denies what it allowed before. If the API rejects it,
the launch ends with the API's own message and advice on what to do.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.config.incluster_config import InClusterConfigLoader

from components.errors import ConfigError, DarkroomError, StorageError
from pipeline.launch.pods import CONTAINER, read_time
from pipeline.launch.render import GROUP, PLURAL, VERSION, Owner
from pipeline.pod import LAUNCHER_ACCOUNT

T = TypeVar("T")
Json = dict[str, Any]

# What the client raises if it cannot connect, or if a connection breaks.
CONNECTION_ERRORS = (urllib3.exceptions.HTTPError, http.client.HTTPException, ConnectionError, TimeoutError)
_TIMEOUT_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0
# A cluster that has just come back rejects everything until it has read its own rules of who may do what.
_SECONDS_UNTIL_RIGHTS_ARE_KNOWN = 60.0
# What the API says of a right that is missing, such as: User "x" cannot list resource "pods" in API group "".
_NO_RIGHT = re.compile(r'User ".*" cannot ')
_WORKLOAD_JOB = "kueue.x-k8s.io/job-uid"
_POD_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOG_LINES = 40


class ApiUnreachable(StorageError):
    """The cluster's API cannot be reached; the training goes on, start again to follow it."""


class Cluster:
    """A client for the objects of one namespace.

    Args:
        api: The connection.
        namespace: Where the training runs.
        patience: Seconds that the API may be unreachable.
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
        self.objects = client.CustomObjectsApi(api)
        self.core = client.CoreV1Api(api)
        self.sleep = sleep
        self._clock = clock
        # Which calls the account was allowed to make, and which it was not, long after the API came back.
        self._granted: set[str] = set()
        self._denied: set[str] = set()
        self._trainjobs = (GROUP, VERSION, namespace, PLURAL)

    def create_job(self, job: Json) -> Json | None:
        """Create a TrainJob and return it; None if there is already one of that name."""
        try:
            created: Json = self._call(
                "create a TrainJob", self.objects.create_namespaced_custom_object, *self._trainjobs, job
            )
        except client.ApiException as error:
            if error.status == 409:
                return None
            raise self._rejection("create a TrainJob", error) from None
        return created

    def get_job(self, name: str) -> Json | None:
        """Return a TrainJob; None if there is none of that name."""
        return self._find("read a TrainJob", self.objects.get_namespaced_custom_object, *self._trainjobs, name)

    def list_jobs(self, label: str) -> list[Json]:
        """Return the TrainJobs that a label selects."""
        listing = self._find(
            "list TrainJobs", self.objects.list_namespaced_custom_object, *self._trainjobs, label_selector=label
        )
        if listing is None:
            raise ConfigError(f"this cluster has no {PLURAL}.{GROUP}/{VERSION}; install Kubeflow Trainer 2.3 or later")
        return list(listing["items"])

    def has_jobset(self, name: str) -> bool:
        """Tell whether the JobSet of a TrainJob still exists: it may create pods.

        False if the launcher may not read JobSets; then only the pods show what still runs.
        """
        jobset = ("jobset.x-k8s.io", "v1alpha2", self.namespace, "jobsets", name)
        try:
            self._call("read a JobSet", self.objects.get_namespaced_custom_object, *jobset)
        except client.ApiException as error:
            if error.status in (403, 404):
                return False
            raise self._rejection("read a JobSet", error) from None
        return True

    def admitted_at(self, uid: str) -> float | None:
        """Return when Kueue admitted a job, in seconds since 1970; None if it has not.

        None as well if the launcher may not read Workloads: what depends on it is not noticed then.
        """
        workloads = ("kueue.x-k8s.io", "v1beta2", self.namespace, "workloads")
        try:
            listing = self._call(
                "list Workloads",
                self.objects.list_namespaced_custom_object,
                *workloads,
                label_selector=f"{_WORKLOAD_JOB}={uid}",
            )
        except client.ApiException as error:
            if error.status in (403, 404):
                return None
            raise self._rejection("list Workloads", error) from None
        for workload in listing["items"]:
            for condition in (workload.get("status") or {}).get("conditions") or ():
                if condition["type"] == "Admitted" and condition["status"] == "True":
                    return read_time(condition["lastTransitionTime"])
        return None

    def patch_job(self, name: str, change: Mapping[str, Any]) -> Json | None:
        """Merge a change into a TrainJob and return it; None if it no longer exists."""
        patch = self.objects.patch_namespaced_custom_object
        return self._find("change a TrainJob", patch, *self._trainjobs, name, change)

    def delete_job(self, name: str, uid: str) -> None:
        """Delete a TrainJob and everything that it created; a newer job of the same name, with another uid, stays.

        The deletion is a background one: Kubeflow Trainer 2.3 creates the JobSet again if the TrainJob waits in the
        foreground for the JobSet to be deleted.
        """
        delete = self.objects.delete_namespaced_custom_object
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._call("delete a TrainJob", delete, *self._trainjobs, name, body=options)
        except client.ApiException as error:
            if error.status not in (404, 409):
                raise self._rejection("delete a TrainJob", error) from None

    def pod_log(self, pod: str) -> str:
        """Return the last lines of a pod's log; empty if they are no longer available."""
        try:
            return str(
                self.core.read_namespaced_pod_log(
                    pod, self.namespace, container=CONTAINER, tail_lines=_LOG_LINES, _request_timeout=_TIMEOUT_SECONDS
                )
            )
        except (client.ApiException, *CONNECTION_ERRORS):
            return ""

    def warnings(self, name: str) -> list[tuple[str, str]]:
        """Return the cluster's warnings about objects whose names contain ``name``: identity and text of each."""
        try:
            listing = self.core.list_namespaced_event(
                self.namespace, field_selector="type=Warning", limit=500, _request_timeout=_TIMEOUT_SECONDS
            )
        except (client.ApiException, *CONNECTION_ERRORS):
            return []  # warnings are a help, and nothing depends on them
        events = [event for event in listing.items if name in (event.involved_object.name or "")]
        return [(f"{event.metadata.uid} {event.count}", f"{event.reason}: {event.message}") for event in events]

    def workflow_owner(self, environment: Mapping[str, str]) -> Owner | None:
        """Return the Argo Workflow that owns this process's pod; None if this is not a pod of a Workflow."""
        name = environment.get("KFP_POD_NAME")
        if not name:
            return None
        pod = self._find("read a pod", self.core.read_namespaced_pod, name, self.namespace)
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
            raise self._rejection(what, error) from None

    def _call(self, what: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call the API until it answers.

        Raises:
            ApiException: If it rejects the call.
            ApiUnreachable: If it does not answer for too long.
        """
        started_at, pause = self._clock(), _FIRST_PAUSE
        while True:
            try:
                answer = call(*arguments, **options, _request_timeout=_TIMEOUT_SECONDS)
            except CONNECTION_ERRORS as error:
                problem = str(error)
            except client.ApiException as error:
                may_pass = is_transient(error.status) or (is_denial(error) and self._may_be_cold(what, started_at))
                if not may_pass:
                    self._note(what, is_denial(error))
                    raise
                problem = f"{error.status} {error.reason}: {_message(error)}"
            else:
                self._note(what, is_denied=False)
                return answer
            if self._clock() - started_at + pause > self.patience:
                raise ApiUnreachable(unreachable_message(self.patience, f"{what}: {problem}"))
            self.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _may_be_cold(self, what: str, since: float) -> bool:
        """Tell whether a rejection for lack of rights may pass: an API server that has just started gives some.

        What was allowed before is allowed again sooner or later. What was never tried is, if the cluster has answered
        anything, waited for once and not for long. If nothing was ever allowed, the rights are missing.
        """
        if what in self._granted:
            return True
        is_new = bool(self._granted) and what not in self._denied
        return is_new and self._clock() - since < _SECONDS_UNTIL_RIGHTS_ARE_KNOWN

    def _note(self, what: str, is_denied: bool) -> None:
        """Note that the API has answered a call: any answer but a denial shows that this account may make it."""
        (self._denied if is_denied else self._granted).add(what)

    def _rejection(self, what: str, error: client.ApiException) -> DarkroomError:
        request = f"the request to {what} in namespace {self.namespace}"
        problem = f"the cluster rejected {request}: {error.status} {_message(error)}"
        if is_denial(error):
            return ConfigError(f"{problem}; bind the chart's role for the launcher to this service account")
        if error.status == 404:
            return ConfigError(f"{problem}; install Kubeflow Trainer 2.3 or later, and create the namespace")
        return ConfigError(f"{problem}; check placement and the TrainingRuntime that it names")


def connect(namespace: str | None, patience: float) -> Cluster:
    """Connect as a pod does, or as kubectl does outside of a cluster.

    Args:
        namespace: Where the training runs; None: this pod's namespace, or that of the current kubectl context.
        patience: Seconds that the API may be unreachable.

    Raises:
        ConfigError: If neither a service account nor a kubeconfig is available.
    """
    settings = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            account = load_account(settings)
            file = account / "namespace"
            default = file.read_text(encoding="utf-8").strip() if file.exists() else "default"
        else:
            config.load_kube_config(client_configuration=settings)
            default = config.list_kube_config_contexts()[1]["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise ConfigError(f"no cluster is configured here: {error}; set KUBECONFIG, or launch.where to local") from None
    settings.retries = urllib3.Retry(0)  # `Cluster` repeats calls itself
    return Cluster(client.ApiClient(settings), namespace or default, patience)


def load_account(settings: client.Configuration) -> Path:
    """Let a client use the launcher's account, or the pod's if there is none; return the account's folder.

    Raises:
        ConfigException: If there is neither.
    """
    account = LAUNCHER_ACCOUNT if (LAUNCHER_ACCOUNT / "token").is_file() else _POD_ACCOUNT
    InClusterConfigLoader(str(account / "token"), str(account / "ca.crt")).load_and_set(settings)
    return account


def is_transient(status: int | None) -> bool:
    """Tell whether an HTTP status means that the API is overloaded or broken, and not that it rejects the request."""
    return status in (None, 0, 408, 429) or (status is not None and status >= 500)


def is_denial(error: client.ApiException) -> bool:
    """Tell whether this account lacks a right; a quota and a webhook that rejects an object answer 403 as well."""
    return error.status == 401 or (error.status == 403 and _NO_RIGHT.search(_message(error)) is not None)


def unreachable_message(patience: float, problem: str) -> str:
    """Return the error message for an API that has been unreachable for too long."""
    return (
        f"the cluster's API has been unreachable for {patience / 60:g} minutes ({problem}); the training goes on: "
        "start again to follow it, or raise launch.api_away_minutes"
    )


def _message(error: client.ApiException) -> str:
    """Return the API's own message."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
