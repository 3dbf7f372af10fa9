"""Write the golden files: a compiled pipeline, what the dashboard shows of it, and tables of the steps' pods.

    python -m tests.golden

The structure of the pipeline does not depend on the recipe, so one whole pipeline is enough; what depends on it is in
the tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import resolve
from pipeline.kubeflow.compile import compile_to
from pipeline.kubeflow.release import Deployment, read_deployment
from pipeline.kubeflow.step_pods import on_cluster, step_names
from pipeline.pod import StepPod
from pipeline.recipe import recipes
from tests.golden.dashboard import form, graph, read

FOLDER = Path(__file__).parent
COLUMNS = ("step", "image", "cpu", "MiB", "tmp MiB", "shm MiB", "gpu", "hours", "secrets", "node")


def main() -> None:
    release = read_deployment(FOLDER.parent / "deploy.yaml")
    compile_to(FOLDER / "demo.yaml", release, "demo")
    pipeline, platform = read(FOLDER / "demo.yaml")
    (FOLDER / "form.txt").write_text(form(pipeline), encoding="utf-8")
    (FOLDER / "graph.txt").write_text(graph(pipeline, platform), encoding="utf-8")
    tables = FOLDER / "pods"
    tables.mkdir(exist_ok=True)
    for file in tables.iterdir():
        file.unlink()
    for recipe in recipes():
        (tables / f"{recipe}.txt").write_text(pods_table(recipe, release), encoding="utf-8")


def pods_table(recipe: str, release: Deployment) -> str:
    """Return one line per step of a recipe's run, and below them each kind of node that a pod asks for."""
    pod_of = on_cluster(resolve(recipe, release.cluster), release)
    pods = {name: pod_of(name) for name in step_names()}
    nodes = [node for node in dict.fromkeys(map(_node, pods.values())) if node]
    rows = [COLUMNS, *(_row(name, pod, release, nodes) for name, pod in pods.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in [*lines, *(f"\nnode {n}: {node}" for n, node in enumerate(nodes, 1))])


def _row(name: str, pod: StepPod, release: Deployment, nodes: list[str]) -> tuple[str, ...]:
    image = {release.image: "light", release.gpu_image: "gpu"}[pod.image]
    sizes = [f"{size:g}" if size else "-" for size in (pod.cpus, pod.memory_mib, pod.tmp_mib, pod.shared_memory_mib)]
    gpu = f"{pod.gpus} {pod.gpu_resource}" if pod.gpus else "-"
    hours = f"{pod.seconds / 3600:g}" if pod.seconds else "-"
    node = str(nodes.index(_node(pod)) + 1) if _node(pod) else "-"
    return (name, image, *sizes, gpu, hours, ",".join(pod.secrets), node)


def _node(pod: StepPod) -> str:
    """Return which nodes a pod may run on; empty if any will do."""
    rules = {"selector": pod.node_selector, "tolerations": pod.tolerations, "affinity": pod.node_affinity}
    demands = {name: rule for name, rule in rules.items() if rule}
    return json.dumps(demands, default=_plain) if demands else ""


def _plain(value: object) -> object:
    assert isinstance(value, Mapping)
    return dict(value)


if __name__ == "__main__":
    main()
