"""What an API server says of the operators' kinds and of their own Deployments, as far as Darkroom asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.launch.checks.operators import read_table

Json = dict[str, Any]


def nested(path: str) -> Json:
    """Return the schema of a kind that has one field, however deep; its last but one is a list."""
    schema: Json = {"type": "string"}
    for depth, name in enumerate(reversed(path.split("."))):
        schema = {"type": "object", "properties": {name: schema}}
        if depth == 0 and path.count(".") > 2:
            schema = {"type": "array", "items": schema}
    return schema


def installed(releases: Mapping[str, str] | None = None, lacking: str = "") -> dict[str, Json]:
    """Return what is at the paths of a cluster's API.

    Args:
        releases: Of operators by name; those that are tested if it names none.
        lacking: An operator whose schema has none of the fields that tell a release.
    """
    answers: dict[str, Json] = {}
    for operator in read_table():
        if "api" not in operator:
            continue
        fields = [rule["without"] for rule in operator["rejected"] if "without" in rule]
        schema = nested(fields[0]) if fields and operator["name"] != lacking else {"properties": {}}
        kind = [{"group": operator["api"].partition("/")[0], "kind": operator["kind"]}]
        schemas = {"any.name": {**schema, "x-kubernetes-group-version-kind": kind}}
        answers[f"/openapi/v3/apis/{operator['api']}"] = {"components": {"schemas": schemas}}
        release = (releases or {}).get(operator["name"], f"{operator['tested'][0]}1")
        namespace, _, name = operator["deployment"].partition("/")
        container = {"image": f"registry.example:5000/operators/x:v{release}@sha256:{'a' * 64}"}
        answers[f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"] = {
            "spec": {"template": {"spec": {"containers": [container]}}}
        }
    return answers
