"""The chart as Helm itself renders it, and the schemas that a cluster would hold it against."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helm_python.chart import Chart

from tests import yaml_text

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "darkroom"
PRESETS = sorted(path.stem for path in CHART.glob("presets/*.yaml"))
CRDS = ROOT.parent / "shared" / "crds"

# All that the chart can make, with what the presets of clouds demand.
EVERYTHING: Manifest = {
    "workdir": "s3://bucket/darkroom",
    "image": {"repository": "registry.example/darkroom", "digest": "sha256:" + "a" * 64},
    "gpuImage": {"repository": "registry.example/darkroom-gpu", "digest": "sha256:" + "b" * 64},
    "imagePullSecrets": ["registry-key"],
    "secrets": {"s3": "store-key", "huggingFace": "hub-key", "wandb": "wandb-key"},
    "env": {"AWS_REGION": "eu-west-1"},
    "schedules": [
        {"name": "nightly", "cron": "0 0 3 * * *", "recipe": "demo", "overrides": ["train.steps=10"]},
        {"name": "weekly", "cron": "@weekly", "recipe": "demo", "source": 's3://b/"odd"', "enabled": False},
    ],
    "recipes": {"mine": {"name": "mine", "ingest": {"source": "s3://bucket/images"}}},
    "clusterQueue": {"create": True, "cohort": "research", "priorities": {"darkroom-high": 10000}},
    "exporter": {"enabled": True},
    "monitoring": {"podMonitor": True, "rules": True, "dashboard": True, "labels": {"release": "prometheus"}},
}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Manifest:
    """Lay one set of values over another, as Helm does with its ``--values`` files."""
    both = {
        key: merged(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def preset(name: str) -> Manifest:
    values: Manifest = yaml.safe_load((CHART / "presets" / f"{name}.yaml").read_text("utf-8"))
    return values


@pytest.fixture(params=PRESETS)
def every_preset(request: pytest.FixtureRequest) -> Manifest:
    """The values of each preset in turn, with everything switched on."""
    return merged(preset(request.param), EVERYTHING)


@pytest.fixture(scope="session")
def everything() -> Manifest:
    """The values of one cloud's preset with everything switched on."""
    return merged(preset("eks"), EVERYTHING)


@pytest.fixture(scope="session")
def values_with() -> Callable[..., Manifest]:
    """Return the values of a preset with others on top."""

    def made(name: str, **above: Any) -> Manifest:
        return merged(preset(name), above)

    return made


@pytest.fixture(scope="session")
def render() -> Iterator[Render]:
    """Return what Helm makes of values: the manifests, hooks and tests among them."""
    with Chart.load(CHART) as chart:

        def manifests(
            values: Mapping[str, Any] | None = None, name: str = "dr", namespace: str = "kubeflow"
        ) -> list[Manifest]:
            files = chart.render(dict(values or {}), name=name, namespace=namespace)
            texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
            return [found for text in texts for found in yaml_text.load_all(text) if found]

        yield manifests


class _Loader(yaml_text.Loader):  # type: ignore[misc]
    """Reads a plain ``=``, which YAML 1.1 gives a meaning of its own, as the text that CRDs mean."""


_Loader.add_constructor("tag:yaml.org,2002:value", _Loader.construct_yaml_str)


@functools.cache
def validator(version: str, kind: str) -> jsonschema.Draft202012Validator:
    """Return what judges objects of a custom kind: the schema that shared/crds serves for that version."""
    group, _, name = version.rpartition("/")
    for path in sorted(CRDS.glob("*/*.yaml")):
        text = path.read_text("utf-8")
        if f"\n    kind: {kind}\n" not in text or f"\n  group: {group}\n" not in text:
            continue  # parsing all of them would take long
        for served in yaml.load(text, Loader=_Loader)["spec"]["versions"]:
            if served["name"] == name and served["served"]:
                return jsonschema.Draft202012Validator(closed(served["schema"]["openAPIV3Schema"]))
    raise AssertionError(f"{CRDS} serves no {kind} of {version}")


def closed(schema: Any, field: str = "") -> Any:
    """Return a structural schema as JSON Schema that refuses what an API server would drop without a word."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value, key) for key, value in schema.items() if field == "properties" or key != "format"}
    if field == "properties":
        return made
    if made.pop("nullable", False):
        made["type"] = [made["type"], "null"]
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="session")
def crd_problems() -> Callable[[Manifest], list[str]]:
    """Return what the API server would find wrong with an object of a custom kind; skips without shared/crds."""
    if not CRDS.is_dir():
        pytest.skip(f"nothing to hold custom objects against: {CRDS} is not there")

    def problems(manifest: Manifest) -> list[str]:
        # An API server checks metadata by its own rules.
        found = validator(manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
        where = f"{manifest['kind']} {manifest['metadata'].get('name')}"
        return [f"{where}: {error.json_path}: {error.message}" for error in found]

    return problems


@pytest.fixture(scope="session")
def is_custom() -> Callable[[Manifest], bool]:
    """Tell whether an object's kind is no part of Kubernetes itself."""

    def custom(manifest: Manifest) -> bool:
        group = manifest["apiVersion"].rpartition("/")[0]
        return "." in group and group.split(".", 1)[1] != "k8s.io" and group.split(".", 1)[1] != "authorization.k8s.io"

    return custom


@pytest.fixture(scope="session")
def pod_specs() -> Callable[[list[Manifest]], dict[str, Manifest]]:
    """Return the spec of every pod among manifests by where it stands, of those inside custom objects too."""

    def below(node: Any, path: str) -> Iterator[tuple[str, Manifest]]:
        if isinstance(node, dict):
            if isinstance(node.get("containers"), list):
                yield path, node
            for key, value in node.items():
                yield from below(value, f"{path}.{key}")
        elif isinstance(node, list):
            for index, value in enumerate(node):
                yield from below(value, f"{path}[{index}]")

    def found(manifests: list[Manifest]) -> dict[str, Manifest]:
        named = ((f"{one['kind']}/{one['metadata']['name']}", one) for one in manifests)
        return dict(pair for name, manifest in named for pair in below(manifest, name))

    return found
