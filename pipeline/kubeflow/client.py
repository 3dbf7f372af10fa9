"""Kubeflow Pipelines' API as Darkroom uses it: typed, page by page, with errors that say what to do.

A thin layer over `kfp.Client` of 2.17, which connects in and out of a cluster. What it finds on its own: the service
of the cluster when it runs in a pod, `~/.kube/config` otherwise; `KF_PIPELINES_ENDPOINT` and
`KF_PIPELINES_SA_TOKEN_PATH` say otherwise. Where users are not kept apart the API takes no namespace.
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

from components.errors import ConfigError, DarkroomError, NotFound
from components.storage.files import explained
from pipeline.kubeflow.calls import COOKIES, TOKEN, Exists, Patience
from pipeline.kubeflow.records import NewRecurring, Recurring, Run, Version, recurring_of, run_of

_TIMEOUT = (10.0, 60.0)  # seconds to connect, and to answer
_PAGE = 100


class Access(NamedTuple):
    """How to reach the API; what is empty is found as Kubeflow's own client finds it.

    Attributes:
        endpoint: Its address, such as http://localhost:8080.
        namespace: The runs' namespace where users are kept apart; the API's own where it is found in the cluster.
        token_file: File with a token that is read again before each call.
        ca_file: Certificates that the server's is checked against.
        context: Context of the kubeconfig.
        ui: Address of the dashboard, where it is not the endpoint's.
        patience: Seconds that the API may be away.
    """

    endpoint: str = ""
    namespace: str = "kubeflow"
    token_file: str = ""
    ca_file: str = ""
    context: str = ""
    ui: str = ""
    patience: float = 10.0


class _Client(kfp.Client):  # type: ignore[misc] # kfp has no types
    """Asks once and keeps nothing: the patience is `Kubeflow`'s, and ~/.config/kfp is a person's."""

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
        ConfigError: Where no address is known, or the API refuses.
        KubeflowAway: Where it does not answer in time.
    """
    # What matters of it is in our errors; kfp sets the levels of the loggers above.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    patience = Patience(access.patience, sleep, clock)
    place = access.endpoint or environment.get("KF_PIPELINES_ENDPOINT") or "the cluster's Kubeflow"
    client, said = patience.call(f"connect to {place}", lambda: _open(access, environment))
    if "Failed to load kube config" in said:
        raise ConfigError(
            "no Kubeflow is known here; give --endpoint or KF_PIPELINES_ENDPOINT, such as http://localhost:8080 after "
            "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        )
    health = patience.call(f"ask {place} how it is", client.get_kfp_healthz)
    namespace = access.namespace if health.multi_user else ""
    client.set_user_namespace(namespace)
    return Kubeflow(client, namespace, patience)


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
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")
        client = _Client(**options)
    rest = client._run_api.api_client.rest_client
    request = rest.request
    # The generated client waits for ever unless each call says how long.
    rest.request = lambda *args, **kw: request(*args, **{**kw, "_request_timeout": _TIMEOUT})
    return client, said.getvalue()


def _mounted_token(environment: Mapping[str, str]) -> bool:
    """Tell whether a pod has the token that Kubeflow asks for."""
    place = environment.get(kfp.client.KF_PIPELINES_SA_TOKEN_ENV) or kfp.client.KF_PIPELINES_SA_TOKEN_PATH
    return Path(place).exists()


class Kubeflow:
    """The objects of one Kubeflow that Darkroom deals with.

    Args:
        client: The connection.
        namespace: The runs' namespace; empty where users are not kept apart.
        patience: Calls it, again and again where need be.
    """

    def __init__(self, client: Any, namespace: str, patience: Patience) -> None:
        self._client = client
        self._namespace = namespace
        self._call = patience.call

    def pipeline(self, name: str) -> str | None:
        """Return a pipeline's id; None where there is none of that name."""
        ask: dict[str, Any] = {"filter": _equals("display_name", name), "namespace": self._namespace or None}
        found = list(self._pages("list pipelines", self._client.list_pipelines, "pipelines", **ask))
        return next((one.pipeline_id for one in found if one.display_name == name), None)

    def make_pipeline(self, name: str, description: str) -> str:
        """Return a pipeline's id, made where there is none: without a version, which `upload` brings."""
        if (known := self.pipeline(name)) is not None:
            return known
        api = self._client._pipelines_api
        body = kfp_server_api.V2beta1Pipeline(
            name=name, display_name=name, description=description, namespace=self._namespace or None
        )
        with self._may_exist():
            return str(self._call("create a pipeline", lambda: api.pipeline_service_create_pipeline(body)).pipeline_id)
        made = self.pipeline(name)
        if made is None:
            raise ConfigError(f"there is a pipeline {name!r} that this account may not see; choose another name")
        return made

    def versions(self, pipeline_id: str) -> list[Version]:
        """Return a pipeline's versions, the newest first."""
        ask = {"pipeline_id": pipeline_id, "sort_by": "created_at desc"}
        found = self._pages("list versions", self._client.list_pipeline_versions, "pipeline_versions", **ask)
        ids = ((one.pipeline_version_id, one.display_name, one.description or "") for one in found)
        return [Version(pipeline_id, *one) for one in ids]

    def upload(self, file: Path, pipeline_id: str, name: str, description: str) -> Version:
        """Return the version of that name, uploaded where there is none."""
        if (known := self._version(pipeline_id, name)) is not None:
            return known
        upload = self._client.upload_pipeline_version
        with self._may_exist():
            self._call(
                "upload the pipeline",
                lambda: upload(str(file), name, pipeline_id=pipeline_id, description=description),
            )
        made = self._version(pipeline_id, name)
        if made is None:
            raise DarkroomError(f"Kubeflow took version {name} of the pipeline and does not know it; try again")
        return made

    def experiment(self, name: str) -> str:
        """Return an experiment's id, made where there is none."""
        create = self._client.create_experiment
        made = self._call("create an experiment", lambda: create(name, namespace=self._namespace or None))
        return str(made.experiment_id)

    def submit(
        self, name: str, version: Version, experiment_id: str, parameters: Mapping[str, Any], service_account: str
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
            NotFound: Where there is none.
        """
        return run_of(self._call(f"read run {run_id}", lambda: self._client.get_run(run_id)))

    def stop(self, run_id: str) -> None:
        """End a run; its pods get SIGTERM."""
        self._call(f"stop run {run_id}", lambda: self._client.terminate_run(run_id))

    def recurring(self) -> list[Recurring]:
        """Return all recurring runs."""
        ask = {"namespace": self._namespace} if self._namespace else {}
        found = self._pages("list recurring runs", self._client.list_recurring_runs, "recurring_runs", **ask)
        return [recurring_of(one) for one in found]

    def create_recurring(self, new: NewRecurring, version: Version, experiment_id: str) -> str:
        """Create a recurring run, disabled, one at a time and without catching up; returns its id."""
        create = self._client.create_recurring_run
        options: dict[str, Any] = {"pipeline_id": version.pipeline_id, "version_id": version.id}
        options |= {"params": dict(new.parameters)}
        options |= {"description": new.description, "cron_expression": new.cron, "enabled": False}
        options |= {"no_catchup": True, "max_concurrency": 1, "service_account": new.service_account or None}
        made = self._call("create a recurring run", lambda: create(experiment_id, new.name, **options), again=False)
        return str(made.recurring_run_id)

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
        return f"{prefix}/#/runs/details/{run_id}"

    def _version(self, pipeline_id: str, name: str) -> Version | None:
        return next((found for found in self.versions(pipeline_id) if found.name == name), None)

    def _pages(self, what: str, call: Callable[..., Any], items: str, **options: Any) -> Iterator[Any]:
        """Yield what all pages of a list hold."""
        token = ""
        while True:
            page = self._call(what, partial(call, page_token=token, page_size=_PAGE, **options))
            yield from getattr(page, items) or ()
            token = page.next_page_token or ""
            if not token:
                return

    @contextlib.contextmanager
    def _may_exist(self) -> Iterator[None]:
        """Let pass that another one was quicker."""
        with contextlib.suppress(Exists):
            yield


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})
