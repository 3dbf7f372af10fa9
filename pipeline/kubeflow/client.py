"""Kubeflow Pipelines' API as Darkroom uses it: typed, page by page, with errors that say what to do.

A thin layer over `kfp.Client` of 2.17, which connects in and out of a cluster. By default it connects to the cluster's
service if it runs in a pod, and as `~/.kube/config` says otherwise; `KF_PIPELINES_ENDPOINT` and
`KF_PIPELINES_SA_TOKEN_PATH` override that. If users do not have namespaces of their own, the API takes none.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import kfp
import kfp_server_api
from kfp.client import ServiceAccountTokenVolumeCredentials

from components.errors import ConfigError, DarkroomError, NotFound, without_credentials
from components.storage.files import explained
from pipeline.kubeflow.calls import COOKIES, TOKEN, Exists, RetryingCaller
from pipeline.kubeflow.records import (
    NewRecurringRun,
    PipelineVersion,
    RecurringRun,
    Run,
    recurring_run_of,
    run_of,
    version_of,
)

_TIMEOUT = (10.0, 60.0)  # seconds to connect, and to answer
_PAGE = 100


class Access(NamedTuple):
    """How to reach the API; empty fields are left to Kubeflow's own client.

    Attributes:
        endpoint: Its address, such as http://localhost:8080.
        namespace: The runs' namespace if users have namespaces of their own; also where the service is looked up.
        token_file: File with a token; it is read again before each call.
        ca_file: Certificates that the server's certificate is checked against.
        context: Context of the kubeconfig.
        ui: Address of the dashboard, if it is not the endpoint's.
        timeout: Seconds for which a call is repeated while the API does not answer.
    """

    endpoint: str = ""
    namespace: str = "kubeflow"
    token_file: str = ""
    ca_file: str = ""
    context: str = ""
    ui: str = ""
    timeout: float = 10.0


class _Client(kfp.Client):  # type: ignore[misc] # kfp has no types
    """Calls once and stores nothing: `RetryingCaller` repeats calls, and ~/.config/kfp belongs to a person."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:  # noqa: ARG002 - as kfp.Client has it
        return self._healthz_api.healthz_service_get_healthz()

    def _load_context_setting_or_default(self) -> None:
        super()._load_context_setting_or_default()
        # Anything: without a namespace the constructor would already ask the API for one. `connect` has the right one.
        self._context_setting["namespace"] = "-"

    def set_user_namespace(self, namespace: str) -> None:
        self._context_setting["namespace"] = namespace


def connect(
    access: Access,
    environment: Mapping[str, str] = os.environ,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Kubeflow:
    """Connect, and wait until the API answers.

    Raises:
        ConfigError: If there is no address, or the API rejects the connection.
        KubeflowAway: If it does not answer in time.
    """
    # Our errors say what matters of it; kfp sets the levels of the loggers above.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    caller = RetryingCaller(access.timeout, sleep, clock)
    address = access.endpoint or environment.get("KF_PIPELINES_ENDPOINT") or "the cluster's Kubeflow"
    client, output = caller.call(f"connect to {address}", lambda: _open(access, environment))
    if "Failed to load kube config" in output:
        raise ConfigError(
            "there is no address of Kubeflow; give --endpoint or KF_PIPELINES_ENDPOINT, such as http://localhost:8080 "
            "after kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        )
    health = caller.call(f"check the health of {address}", client.get_kfp_healthz)
    namespace = access.namespace if health.multi_user else ""
    client.set_user_namespace(namespace)
    return Kubeflow(client, namespace, caller)


def _open(access: Access, environment: Mapping[str, str]) -> tuple[Any, str]:
    """Return the client, and what it printed."""
    options: dict[str, Any] = {"host": access.endpoint or None, "namespace": access.namespace}
    if access.token_file:
        with explained(f"read {access.token_file}"):
            Path(access.token_file).read_bytes()
        options["credentials"] = ServiceAccountTokenVolumeCredentials(path=access.token_file)
    elif token := environment.get(TOKEN):
        options["existing_token"] = token
    elif (access.endpoint or environment.get("KF_PIPELINES_ENDPOINT")) and _mounted_token(environment):
        options["credentials"] = ServiceAccountTokenVolumeCredentials()
    options |= {"cookies": environment.get(COOKIES), "ssl_ca_cert": access.ca_file or None}
    options |= {"kube_context": access.context or None, "ui_host": access.ui or None}
    output = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(output):
        warnings.simplefilter("ignore")
        client = _Client(**options)
    rest = client._run_api.api_client.rest_client
    request = rest.request
    # The generated client waits for ever unless each call says how long.
    rest.request = lambda *args, **kw: request(*args, **{**kw, "_request_timeout": _TIMEOUT})
    return client, output.getvalue()


def _mounted_token(environment: Mapping[str, str]) -> bool:
    """Tell whether this pod has the token that Kubeflow expects."""
    path = environment.get(kfp.client.KF_PIPELINES_SA_TOKEN_ENV) or kfp.client.KF_PIPELINES_SA_TOKEN_PATH
    return Path(path).exists()


class Kubeflow:
    """The objects of one Kubeflow that Darkroom uses.

    Args:
        client: The connection.
        namespace: The runs' namespace; empty if users do not have namespaces of their own.
        caller: Calls the API.
    """

    def __init__(self, client: Any, namespace: str, caller: RetryingCaller) -> None:
        self._client = client
        self._namespace = namespace
        self._call = caller.call

    def release(self) -> str:
        """Return the release of Kubeflow Pipelines, such as 2.17.0; empty if it does not say."""
        api = self._client._healthz_api.api_client
        read = partial(api.call_api, "/apis/v1beta1/healthz", "GET", response_type="object")
        try:
            answer, *_ = self._call("read the release", read)
        except DarkroomError:
            return ""
        return str(answer.get("tag_name") or "")

    def pipeline(self, name: str) -> str | None:
        """Return a pipeline's id; None if there is none of that name."""
        options: dict[str, Any] = {"filter": _equals("display_name", name), "namespace": self._namespace or None}
        pipelines = list(self._pages("list pipelines", self._client.list_pipelines, "pipelines", **options))
        return next((one.pipeline_id for one in pipelines if one.display_name == name), None)

    def make_pipeline(self, name: str, description: str) -> str:
        """Return a pipeline's id; create it if there is none, without a version, which `upload` adds."""
        if (existing := self.pipeline(name)) is not None:
            return existing
        api = self._client._pipelines_api
        body = kfp_server_api.V2beta1Pipeline(
            name=name, display_name=name, description=description, namespace=self._namespace or None
        )
        with self._may_exist():
            return str(self._call("create a pipeline", lambda: api.pipeline_service_create_pipeline(body)).pipeline_id)
        created = self.pipeline(name)
        if created is None:
            raise ConfigError(f"there is a pipeline {name!r} that this account may not see; choose another name")
        return created

    def versions(self, pipeline_id: str) -> list[PipelineVersion]:
        """Return a pipeline's versions, the newest first."""
        options = {"pipeline_id": pipeline_id, "sort_by": "created_at desc"}
        models = self._pages("list versions", self._client.list_pipeline_versions, "pipeline_versions", **options)
        return [version_of(model) for model in models]

    def upload(self, file: Path, pipeline_id: str, name: str, description: str) -> PipelineVersion:
        """Return the version of that name; upload it if there is none."""
        if (existing := self._version(pipeline_id, name)) is not None:
            return existing
        upload = self._client.upload_pipeline_version
        with self._may_exist():
            self._call(
                "upload the pipeline",
                lambda: upload(str(file), name, pipeline_id=pipeline_id, description=description),
            )
        created = self._version(pipeline_id, name)
        if created is None:
            raise DarkroomError(f"Kubeflow accepted version {name} of the pipeline and does not list it; try again")
        return created

    def experiment(self, name: str) -> str:
        """Return an experiment's id; create it if there is none."""
        create = self._client.create_experiment
        experiment = self._call("create an experiment", lambda: create(name, namespace=self._namespace or None))
        return str(experiment.experiment_id)

    def submit(
        self,
        name: str,
        version: PipelineVersion,
        experiment_id: str,
        parameters: Mapping[str, Any],
        service_account: str,
    ) -> str:
        """Start a run, and return its id; never twice."""
        start = self._client.run_pipeline
        options: dict[str, Any] = {"pipeline_id": version.pipeline_id, "version_id": version.id}
        options |= {"params": dict(parameters)}
        options |= {"service_account": service_account or None}
        return str(self._call("start a run", lambda: start(experiment_id, name, **options), again=False).run_id)

    def runs(self, most: int) -> list[Run]:
        """Return the newest runs."""
        pages = self._pages("list runs", self._client.list_runs, "runs", sort_by="created_at desc")
        return [run_of(one) for one, _ in zip(pages, range(most), strict=False)]

    def all_runs(self) -> Iterator[Run]:
        """Yield all runs, the newest first."""
        return map(run_of, self._pages("list runs", self._client.list_runs, "runs", sort_by="created_at desc"))

    def run(self, run_id: str) -> Run:
        """Return a run with its tasks.

        Raises:
            NotFound: If there is no such run.
        """
        return run_of(self._call(f"read run {run_id}", lambda: self._client.get_run(run_id)))

    def stop(self, run_id: str) -> None:
        """End a run; its pods get SIGTERM."""
        self._call(f"stop run {run_id}", lambda: self._client.terminate_run(run_id))

    def recurring(self) -> list[RecurringRun]:
        """Return all recurring runs."""
        options = {"namespace": self._namespace} if self._namespace else {}
        models = self._pages("list recurring runs", self._client.list_recurring_runs, "recurring_runs", **options)
        return [recurring_run_of(model) for model in models]

    def create_recurring(self, new: NewRecurringRun, version: PipelineVersion, experiment_id: str) -> str:
        """Create a recurring run, disabled, one at a time and without catching up; returns its id."""
        create = self._client.create_recurring_run
        options: dict[str, Any] = {"pipeline_id": version.pipeline_id, "version_id": version.id}
        options |= {"params": dict(new.parameters)}
        options |= {"description": new.description, "cron_expression": new.cron, "enabled": False}
        options |= {"no_catchup": True, "max_concurrency": 1, "service_account": new.service_account or None}
        run = self._call("create a recurring run", lambda: create(experiment_id, new.name, **options), again=False)
        return str(run.recurring_run_id)

    def switch_recurring(self, recurring_id: str, enabled: bool) -> None:
        """Enable or disable a recurring run."""
        call = self._client.enable_recurring_run if enabled else self._client.disable_recurring_run
        self._call("switch a recurring run", lambda: call(recurring_id))

    def delete_recurring(self, recurring_id: str) -> None:
        """Delete a recurring run; its runs go on. It may be gone already."""
        with contextlib.suppress(NotFound):
            self._call("delete a recurring run", lambda: self._client.delete_recurring_run(recurring_id))

    def link(self, run_id: str) -> str:
        """Return the address of a run in the dashboard."""
        prefix: str = self._client._get_url_prefix()
        return without_credentials(f"{prefix}/#/runs/details/{run_id}")

    def _version(self, pipeline_id: str, name: str) -> PipelineVersion | None:
        return next((version for version in self.versions(pipeline_id) if version.name == name), None)

    def _pages(self, what: str, call: Callable[..., Any], items: str, **options: Any) -> Iterator[Any]:
        """Yield the items of all pages of a list."""
        token = ""
        while True:
            page = self._call(what, partial(call, page_token=token, page_size=_PAGE, **options))
            yield from getattr(page, items) or ()
            token = page.next_page_token or ""
            if not token:
                return

    @contextlib.contextmanager
    def _may_exist(self) -> Iterator[None]:
        """Ignore that another process was quicker and the object exists already."""
        with contextlib.suppress(Exists):
            yield


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})
