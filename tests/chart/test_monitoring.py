"""Alerts and dashboard speak of metrics that somebody really exports, by labels that these really have."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.core import Metric

from components.progress import Progress
from components.storage.open import open_storage
from pipeline.kubeflow.exporter import Exporter, Facts, families

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

# What others export, and the labels used here. Kueue 0.19: pkg/metrics/metrics.go. kube-state-metrics: docs/metrics.
FOREIGN = {
    "kueue_pending_workloads": {"cluster_queue", "status"},
    "kueue_admitted_active_workloads": {"cluster_queue"},
    "kueue_cluster_queue_resource_usage": {"cohort", "cluster_queue", "flavor", "resource"},
    "kueue_cluster_queue_nominal_quota": {"cohort", "cluster_queue", "flavor", "resource"},
    "kube_job_status_failed": {"namespace", "job_name"},
    "kube_pod_status_phase": {"namespace", "pod", "phase"},
}
SCRAPED = {"namespace", "pod"}  # what the Prometheus Operator adds to what a PodMonitor finds
WORDS = re.compile(r"\b((?:darkroom|kueue|kube|jobset)_[a-z0-9_]+)(?:\{([^}]*)\})?")
TEMPLATE = re.compile(r"\{\{\s*\$?(?:labels\.)?([a-z_]+)\s*\}\}")


def exported() -> dict[str, set[str]]:
    """Return the names of the exporter's samples, with their labels."""
    every = dict.fromkeys(("step", "steps", "loss", "samples_per_second", "training", "spent_usd"), 1.0)
    every |= {"budget_usd": 1.0, "preemptions": 1.0, "crashes": 1.0}
    exporter = Exporter(open_storage("memory://monitoring"), Progress(io.StringIO()), clock=lambda: 1.0)
    exporter.refresh()
    found: list[Metric] = [*families({"run": Facts(every, {"useful": 1.0})}), *exporter.collect()]
    return {sample.name: set(sample.labels) | SCRAPED for metric in found for sample in metric.samples}


def check(expression: str) -> None:
    known = exported() | FOREIGN
    used = WORDS.findall(expression)
    assert used, expression
    for name, matchers in used:
        assert name in known, f"nobody exports {name}"
        labels = set(re.findall(r"([a-z_]+)=?[=~!]", matchers))
        assert labels <= known[name], f"{name} has no labels {labels - known[name]}"
        assert labels, f"{name} would speak of every namespace and queue of the cluster"
    assert expression.count("(") == expression.count(")")


@pytest.fixture(scope="module")
def rules(everything: Manifest, render: Render) -> list[Manifest]:
    [found] = [m for m in render(everything) if m["kind"] == "PrometheusRule"]
    [group] = found["spec"]["groups"]
    alerts: list[Manifest] = group["rules"]
    return alerts


def test_alerts_build_on_metrics_that_exist(rules: list[Manifest]) -> None:
    for rule in rules:
        check(rule["expr"])


def test_alerts_cover_a_stalled_run_the_budget_and_repeated_preemption(rules: list[Manifest]) -> None:
    assert {"DarkroomRunStalled", "DarkroomBudgetNearlySpent", "DarkroomRepeatedPreemption"} <= {
        rule["alert"] for rule in rules
    }


def test_an_alert_says_what_it_means_and_what_to_do(rules: list[Manifest]) -> None:
    for rule in rules:
        assert {"summary", "description"} == set(rule["annotations"])
        assert rule["labels"]["severity"] in ("info", "warning")
        for text in rule["annotations"].values():
            assert set(TEMPLATE.findall(text)) <= {"run", "value"}, text


def test_the_values_set_the_thresholds(everything: Manifest, render: Render) -> None:
    wanted = {**everything["monitoring"], "stalledMinutes": 7, "budgetPercent": 33, "preemptionsPerHour": 11}
    [found] = [m for m in render({**everything, "monitoring": wanted}) if m["kind"] == "PrometheusRule"]
    expressions = {rule["alert"]: rule["expr"] for rule in found["spec"]["groups"][0]["rules"]}
    assert "[7m]" in expressions["DarkroomRunStalled"]
    assert "> 33 *" in expressions["DarkroomBudgetNearlySpent"]
    assert ">= 11" in expressions["DarkroomRepeatedPreemption"]


def test_the_dashboard_is_found_by_grafana_and_shows_metrics_that_exist(everything: Manifest, render: Render) -> None:
    [found] = [m for m in render(everything) if m["metadata"]["name"].endswith("-dashboard")]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["labels"]["release"] == "prometheus"
    dashboard = json.loads(found["data"]["darkroom.json"])
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for target in (target for panel in panels for target in panel["targets"]):
        check(target["expr"])
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$([a-z]+)", json.dumps([panel["targets"] for panel in panels])))
    assert used <= names


def test_the_exporter_is_what_the_monitor_selects(everything: Manifest, render: Render) -> None:
    manifests = render(everything)
    [monitor] = [m for m in manifests if m["kind"] == "PodMonitor"]
    [deployment] = [m for m in manifests if m["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    [container] = pod["spec"]["containers"]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in [port["name"] for port in container["ports"]]


def test_nothing_of_it_is_made_unless_asked_for(render: Render) -> None:
    assert not {m["kind"] for m in render({})} & {"PodMonitor", "PrometheusRule", "Deployment"}
