"""What Kubeflow's dashboard shows of the compiled pipeline: the form, and the graph with the clicks to each block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

# The most that etcd takes of one object.
LIMIT = 1_572_864
# Of one entry in a Workflow's status: its names, times, phase, template and children.
_NODE_BYTES = 700
# What Kubeflow's driver adds to a step's container: its own arguments, the inputs' values, downward variables.
_PATCH_BYTES = 1500


def read(file: Path) -> tuple[Json, Json]:
    """Return the two documents of a compiled pipeline: the pipeline, and what concerns Kubernetes."""
    pipeline, platform = yaml.load_all(file.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return pipeline, platform


def form(pipeline: Json) -> str:
    """Return the form's fields as the dashboard shows them, sorted by name, and the description below."""
    fields = pipeline["root"]["inputDefinitions"]["parameters"]
    lines = [f"{pipeline['pipelineInfo']['name']}", ""]
    for name in sorted(fields):
        lines.append(f"{name:10} {fields[name]['parameterType']:7} {json.dumps(fields[name]['defaultValue'])}")
    return "\n".join([*lines, "", pipeline["pipelineInfo"]["description"], ""])


def graph(pipeline: Json, platform: Json) -> str:
    """Return the blocks, each below the one that is to be clicked to see it, and the size of the Workflow."""
    lines = [f"{'clicks':7} block"]
    for depth, name, kind in blocks(pipeline, pipeline["root"]["dag"]["tasks"]):
        lines.append(f"{depth:<7} {'  ' * depth}{name}{f' ({kind})' if kind else ''}")
    lines.append("")
    for lanes in (1, 8, 50):
        lines.append(
            f"Workflow with {lanes:2} lanes: {workflow_bytes(pipeline, platform, lanes) / 2**20:.1f} MiB of 1.5"
        )
    most = max(lanes for lanes in range(1, 51) if workflow_bytes(pipeline, platform, lanes) <= LIMIT)
    return "\n".join([*lines, f"lanes that fit, uncompressed: {most}", ""])


def blocks(pipeline: Json, tasks: Json, depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """Yield how many clicks away each block is, its name, and what it is if it is no step."""
    for task in tasks.values():
        component = pipeline["components"][task["componentRef"]["name"]]
        kind = "loop" if "parameterIterator" in task else "pipeline" if "dag" in component else ""
        yield depth, task["taskInfo"]["name"], kind
        yield from blocks(pipeline, component.get("dag", {}).get("tasks", {}), depth + 1)


def workflow_bytes(pipeline: Json, platform: Json, lanes: int) -> int:
    """Return about how large Argo's Workflow object of a run becomes, before Argo compresses its status.

    Its spec holds the whole pipeline once. Its status has for each step an entry of Kubeflow's driver, which holds the
    step's component, container and Kubernetes settings and gives the pod's patch, and entries of the step's own graph,
    of the retries and of the pod, which each hold the patch; for each item of a loop two more. That makes 28 KB for a
    lane's step; the pipeline of kubeflow/pipelines#13738 had 36 KB for each of its 56.
    """
    total = len(json.dumps(pipeline)) + len(json.dumps(platform))
    return total + _status_bytes(pipeline, platform, pipeline["root"]["dag"]["tasks"], lanes)


def _status_bytes(pipeline: Json, platform: Json, tasks: Json, lanes: int) -> int:
    total = 0
    executors = pipeline["deploymentSpec"]["executors"]
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for task in tasks.values():
        component = pipeline["components"][task["componentRef"]["name"]]
        own = len(json.dumps(task)) + len(json.dumps(component))
        if "dag" in component:
            inner = _status_bytes(pipeline, platform, component["dag"]["tasks"], lanes)
            times = lanes if "parameterIterator" in task else 1
            total += 2 * (own + _NODE_BYTES) + times * (inner + 2 * (own + _NODE_BYTES))
        else:
            label = component["executorLabel"]
            container = len(json.dumps(executors[label])) + len(json.dumps(kubernetes[label]))
            patch = own + container + _PATCH_BYTES
            total += own + container + 4 * (patch + _NODE_BYTES)
    return total
