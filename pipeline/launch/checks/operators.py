"""Whether the operators that a cluster has are those that Darkroom was tested with: a table, and who reads what of it.

Nothing is asked for that every account may not read anyway, but for the operators' Deployments, which name the release:
if those may not be read, a warning says so, and what the schemas show is still checked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.errors import ConfigError

# Returns what the Kubernetes API has at a path; None if there is nothing.
Read = Callable[[str], Mapping[str, Any] | None]
PIPELINES = "Kubeflow Pipelines"
_TABLE = Path(__file__).with_name("operators.yaml")


class NotAllowed(ConfigError):
    """The account may not read something of the cluster, which is no reason to fail."""


class Finding(NamedTuple):
    """What is to be said of one operator.

    Attributes:
        text: The sentence.
        is_error: Whether a run would not work.
    """

    text: str
    is_error: bool


def read_table(file: Path = _TABLE) -> list[dict[str, Any]]:
    """Return the table of operators."""
    operators: list[dict[str, Any]] = yaml.safe_load(file.read_text("utf-8"))
    return operators


def judge(read: Read | None, pipelines: str, needed: Collection[str]) -> Iterator[Finding]:
    """Yield what is wrong, or not known, of a cluster's operators.

    Args:
        read: Reads the Kubernetes API; None if there is no access to it.
        pipelines: The release of Kubeflow Pipelines; empty if it does not say.
        needed: The settings of the run, or of all runs, that need an operator, such as ``placement.queue``.
    """
    for operator in read_table():
        if operator["name"] == PIPELINES:
            yield from _judge_release(operator, pipelines.removeprefix("v"))
        elif read is not None and operator["needed_by"] in needed:
            yield from _judge_installed(operator, read)
    if read is None:
        yield Finding("no access to the Kubernetes API from here, so installed operators were not checked", False)


def _judge_installed(operator: Mapping[str, Any], read: Read) -> Iterator[Finding]:
    name, api = operator["name"], operator["api"]
    try:
        document = read(f"/openapi/v3/apis/{api}")
    except NotAllowed as error:
        yield Finding(f"{name} was not checked: {error}", False)
        return
    if document is None:
        yield Finding(f"{name}: this cluster does not serve {api}; install {operator['install']}", True)
        return
    schema = _schema(document, operator["kind"])
    for rule in operator["rejected"]:
        if schema is not None and "without" in rule and not _has(schema, rule["without"].split(".")):
            yield _rejected(operator, rule)
            return
    try:
        release = _release(operator["deployment"], read)
    except NotAllowed as error:
        yield Finding(f"{name}: its release is not known: {error}", False)
    else:
        yield from _judge_release(operator, release)


def _judge_release(operator: Mapping[str, Any], release: str) -> Iterator[Finding]:
    name, tested = operator["name"], ", ".join(f"{begin}x" for begin in operator["tested"])
    if not release:
        yield Finding(f"{name}: its release is not known; tested with {tested}", False)
        return
    for rule in operator["rejected"]:
        if "release" in rule and f"{release}.".startswith(rule["release"]):
            yield _rejected(operator, rule)
            return
    for rule in operator.get("doubtful", ()):
        if f"{release}.".startswith(rule["release"]):
            yield Finding(f"{name} {release} {rule['why']}", False)
    if not any(f"{release}.".startswith(begin) for begin in operator["tested"]):
        yield Finding(f"{name} {release} is not tested with this release of Darkroom; {tested} is", False)


def _rejected(operator: Mapping[str, Any], rule: Mapping[str, Any]) -> Finding:
    return Finding(f"{operator['name']} {rule['named']} {rule['why']}; install {operator['install']}", True)


def _schema(document: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """Return the schema of a kind in an OpenAPI document of version 3."""
    for schema in document.get("components", {}).get("schemas", {}).values():
        if any(one.get("kind") == kind for one in schema.get("x-kubernetes-group-version-kind", ())):
            found: Mapping[str, Any] = schema
            return found
    return None


def _has(schema: Mapping[str, Any], path: list[str]) -> bool:
    """Tell whether a schema has a field; lists on the way are looked into."""
    for name in path:
        schema = schema.get("items", schema)
        if name not in schema.get("properties", {}):
            return False
        schema = schema["properties"][name]
    return True


def _release(deployment: str, read: Read) -> str:
    """Return the tag of an operator's image, without its v; empty if it has none, as one that is pinned by digest."""
    namespace, _, name = deployment.partition("/")
    found = read(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
    if found is None:
        return ""
    image = str(found["spec"]["template"]["spec"]["containers"][0]["image"]).partition("@")[0]
    return image.rpartition("/")[2].partition(":")[2].removeprefix("v")


def reader(api: Any, seconds: float = 5.0) -> Read:
    """Return what reads paths of the Kubernetes API through its client.

    Args:
        api: A ``kubernetes.client.ApiClient``.
        seconds: How long one answer may take.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    def read(path: str) -> Mapping[str, Any] | None:
        try:
            answer, *_ = api.call_api(
                path,
                "GET",
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
                response_type="object",
                _request_timeout=seconds,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise NotAllowed(f"{path} answers {error.status} {error.reason}") from None
        except HTTPError as error:
            raise NotAllowed(f"{path} cannot be reached ({type(error).__name__})") from None
        found: Mapping[str, Any] = answer
        return found

    return read


def needs(where: str, queue: str | None) -> set[str]:
    """Return the settings of a run that need an operator."""
    if where == "local":
        return set()
    return {"launch.where", "placement.queue"} if queue is not None else {"launch.where"}
