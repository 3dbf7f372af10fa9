"""Kubeflow Pipelines' REST API (v2beta1) in this process: enough for `kfp.Client`, with the real API's errors.

It keeps pipelines, versions, experiments, runs and recurring runs, returns pages of two, and fails if a test makes it.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import yaml_text

Json = dict[str, Any]
_PAGE = 2  # however many the client asks for
_PREFIX = "/apis/v2beta1"
_START = datetime(2026, 11, 1, tzinfo=UTC)
_NEVER = "1970-01-01T00:00:00Z"


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubeflowApi:
    """Serves at `url`.

    Attributes:
        seen: Method and path of every request, in order.
        before: Called with both before each request; may raise `Refusal`.
        multi_user: Whether users are kept apart: if so, every request names a namespace, otherwise none may.
        token: What the Authorization header must hold; empty: any.
        release: What it calls itself.
    """

    def __init__(self, multi_user: bool = False) -> None:
        self.multi_user = multi_user
        self.token = ""
        self.release = "2.17.0"
        self.seen: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.tables: dict[str, dict[str, Json]] = {
            name: {} for name in ("pipelines", "pipeline_versions", "experiments", "runs", "recurring_runs")
        }
        self.most_enabled = 0  # recurring runs of one name that were enabled at the same time
        self._lock = threading.Lock()
        self._count = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, values = api.answer(self.command, self.path, body, dict(self.headers))
                data = json.dumps(values).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, Json]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix(_PREFIX)
        try:
            with self._lock:
                self.seen.append((method, path))
                self.before(method, path)
                if self.token and headers.get("authorization", headers.get("Authorization")) != f"Bearer {self.token}":
                    raise Refusal(401, "the token is not valid")
                return 200, self._route(method, path, query, body)
        except Refusal as refusal:
            return refusal.status, {"code": 3, "error": str(refusal), "message": str(refusal)}

    def _route(self, method: str, path: str, query: dict[str, str], body: bytes) -> Json:
        _, kind, *rest = path.split("/")
        if path == "/apis/v1beta1/healthz":
            return {"tag_name": self.release, "multi_user": self.multi_user}
        if kind == "healthz":
            return {"multi_user": self.multi_user}
        if kind == "pipelines" and rest[:1] == ["upload_version"]:
            return self._upload(query, body)
        if kind == "pipelines" and rest[1:] == ["versions"]:
            versions = [version for version in self._all("pipeline_versions") if version["pipeline_id"] == rest[0]]
            return self._page("pipeline_versions", versions, query)
        table = {"recurringruns": "recurring_runs"}.get(kind, kind)
        if method == "POST" and not rest:
            return self._create(table, json.loads(body))
        if method == "GET" and not rest:
            self._check_namespace(table, query.get("namespace", ""), "experiment_id" in query)
            return self._page(table, self._filtered(table, query), query)
        name, _, verb = rest[0].partition(":")
        record = self.tables[table].get(name)
        if record is None:
            raise Refusal(404, f"{kind} {name} not found.")
        return self._change(table, record, method, verb)

    def _change(self, table: str, record: Json, method: str, verb: str) -> Json:
        if method == "DELETE":
            del self.tables[table][_id(table, record)]
            return {}
        if verb == "terminate":
            record["state"] = "CANCELING"
        elif verb in ("enable", "disable"):
            record["status"] = f"{verb.upper()}D"
            self._watch()
        elif verb:
            raise Refusal(501, f"no {verb} here")
        return {} if verb else record

    def _create(self, table: str, given: Json) -> Json:
        if table in ("pipelines", "experiments"):
            self._check_namespace(table, given.get("namespace", ""), False)
            if any(one["display_name"] == given["display_name"] for one in self._all(table)):
                raise Refusal(409, f"Already exist error. {given['display_name']}")
        if table in ("runs", "recurring_runs"):
            version = given["pipeline_version_reference"]["pipeline_version_id"]
            self._check_parameters(version, given)
        if table == "recurring_runs":
            if len(given["trigger"]["cron_schedule"]["cron"].split()) != 6:
                raise Refusal(400, "Schedule cron is not a supported format")
            # The request has a mode, and the answer a status.
            given |= {"status": {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[given["mode"]]}
            given["max_concurrency"] = str(given["max_concurrency"])
        if table == "runs":
            given |= {"state": "PENDING", "finished_at": _NEVER}
        record = self._keep(table, given)
        self._watch()
        return record

    def _check_parameters(self, version: str, given: Json) -> None:
        spec = self.tables["pipeline_versions"][version]["pipeline_spec"]
        inputs = spec["root"]["inputDefinitions"]["parameters"]
        parameters = given["runtime_config"]["parameters"]
        for name, value in parameters.items():
            kind = "LIST" if isinstance(value, list) else "STRING"
            if name not in inputs or inputs[name]["parameterType"] != kind:
                raise Refusal(400, f"parameter {name} of type {kind} is not in the pipeline")
        for name, definition in inputs.items():
            # An empty default has read as a missing parameter (kubeflow/pipelines#11515).
            if name not in parameters and not definition.get("defaultValue"):
                raise Refusal(400, f"parameter {name} is missing")

    def _check_namespace(self, table: str, namespace: str, by_experiment: bool) -> None:
        if not self.multi_user and namespace:
            raise Refusal(400, f"In single-user mode, {table} cannot be filtered by namespace.")
        if self.multi_user and not namespace and not by_experiment and table != "pipelines":
            raise Refusal(400, "Namespace is empty. Please specify a valid namespace.")

    def _upload(self, query: dict[str, str], body: bytes) -> Json:
        file = body.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--")[0]
        spec, *_ = yaml_text.load_all(file)
        versions = [one for one in self._all("pipeline_versions") if one["pipeline_id"] == query["pipelineid"]]
        if any(one["display_name"] == query["name"] for one in versions):
            raise Refusal(409, "Already exist error. The pipeline version already exists.")
        fields = {"pipeline_id": query["pipelineid"], "description": query.get("description", "")}
        return self._keep("pipeline_versions", {**fields, "display_name": query["name"], "pipeline_spec": spec})

    def _keep(self, table: str, given: Json) -> Json:
        self._count += 1
        name = str(uuid.UUID(int=(self._count << 96) | self._count, version=4))
        created = (_START + timedelta(minutes=self._count)).isoformat().replace("+00:00", "Z")
        record = {**given, _key(table): name, "created_at": created}
        self.tables[table][name] = record
        return record

    def _filtered(self, table: str, query: dict[str, str]) -> list[Json]:
        records = self._all(table)
        for rule in json.loads(query.get("filter") or "{}").get("predicates", ()):
            assert (rule["operation"] in ("EQUALS", 1), rule["key"]) == (True, "display_name"), rule
            records = [
                one for one in records if one["display_name"] == rule.get("stringValue", rule.get("string_value"))
            ]
        return records

    def _page(self, table: str, records: list[Json], query: dict[str, str]) -> Json:
        if query.get("sort_by") == "created_at desc":
            records = sorted(records, key=lambda one: str(one["created_at"]), reverse=True)
        begin = int(query.get("page_token") or 0)
        rest = {"next_page_token": str(begin + _PAGE)} if len(records) > begin + _PAGE else {}
        key = {"recurring_runs": "recurringRuns"}.get(table, table)
        return {key: records[begin : begin + _PAGE], "total_size": len(records), **rest}

    def _all(self, table: str) -> list[Json]:
        return list(self.tables[table].values())

    def _watch(self) -> None:
        enabled = [one["display_name"] for one in self._all("recurring_runs") if one["status"] == "ENABLED"]
        self.most_enabled = max([self.most_enabled, *(enabled.count(name) for name in enabled)])


def _key(table: str) -> str:
    return {"pipeline_versions": "pipeline_version_id"}.get(table, re.sub(r"s$", "_id", table))


def _id(table: str, record: Json) -> str:
    return str(record[_key(table)])
