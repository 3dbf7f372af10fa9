"""The restart rules, played through as the Job controller and JobSet would.

``message`` writes what Kubernetes' pkg/controller/job/pod_failure_policy.go writes into a Job's Failed condition, and
``action`` chooses as JobSet's pkg/controllers/failure_policy.go does: the first rule whose reasons and patterns match.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from components import errors

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

# batch/v1's reasons that JobSet's webhook takes (validOnJobFailureReasons).
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}
FREE = "RestartJobSetAndIgnoreMaxRestarts"


@pytest.fixture(scope="module")
def jobset(render: Render) -> Manifest:
    [runtime] = [manifest for manifest in render({}) if manifest["kind"] == "TrainingRuntime"]
    spec: Manifest = runtime["spec"]["template"]["spec"]
    return spec


def failure(job: Manifest, code: int, conditions: tuple[str, ...]) -> tuple[str, str]:
    """Return reason and message of the Job's Failed condition once its pod ended."""
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        told = f"matching {rule['action']} rule at index {index}"
        exits = rule.get("onExitCodes")
        if exits and exits["operator"] == "In" and exits["containerName"] == "node" and code in exits["values"]:
            return (
                "PodFailurePolicy",
                f"Container node for pod team/exit-code-75-node-0-1-x7k2p failed with exit code {code} {told}",
            )
        for wanted in rule.get("onPodConditions", ()):
            if wanted["type"] in conditions:
                return "PodFailurePolicy", f"Pod team/exit-code-75-node-0-1-x7k2p has condition {wanted['type']} {told}"
    assert job["backoffLimit"] == 0
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def action(jobset: Manifest, reason: str, message: str) -> tuple[str, str]:
    for rule in jobset["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule.get("onJobFailureReasons", REASONS) and any(re.search(p, message) for p in patterns):
            return rule["name"], rule["action"]
    return "", "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "conditions", "expected"),
    [
        (errors.ConfigError.exit_code, (), ("refused", "FailJobSet")),
        (errors.DataError.exit_code, (), ("refused", "FailJobSet")),
        (errors.DataError.exit_code, ("DisruptionTarget",), ("refused", "FailJobSet")),
        (errors.Preempted.exit_code, (), ("preempted", FREE)),
        (errors.Preempted.exit_code, ("DisruptionTarget",), ("preempted", FREE)),
        (137, ("DisruptionTarget",), ("disrupted", FREE)),
        (1, ("DisruptionTarget",), ("disrupted", FREE)),
        (1, (), ("crashed", "RestartJobSet")),
        (137, (), ("crashed", "RestartJobSet")),
        (errors.Hung.exit_code, (), ("crashed", "RestartJobSet")),
        (errors.OutOfMemory.exit_code, (), ("crashed", "RestartJobSet")),
        (errors.StorageError.exit_code, (), ("crashed", "RestartJobSet")),
        (errors.DarkroomError.exit_code, (), ("crashed", "RestartJobSet")),
    ],
)
def test_how_a_pod_ends_decides_how_the_gang_restarts(
    code: int, conditions: tuple[str, ...], expected: tuple[str, str], jobset: Manifest
) -> None:
    [part] = jobset["replicatedJobs"]
    assert action(jobset, *failure(part["template"]["spec"], code, conditions)) == expected


def test_a_deadline_and_an_eviction_of_the_job_itself_count(jobset: Manifest) -> None:
    assert action(jobset, "DeadlineExceeded", "Job was active longer than specified deadline")[1] == "RestartJobSet"


def test_the_rules_are_such_as_jobset_takes(jobset: Manifest) -> None:
    rules = jobset["failurePolicy"]["rules"]
    assert len({rule["name"] for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert set(rule.get("onJobFailureReasons", ())) <= REASONS


def test_the_gang_starts_and_ends_as_one(jobset: Manifest) -> None:
    [part] = jobset["replicatedJobs"]
    job = part["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy demands it
    assert jobset["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    assert "ttlSecondsAfterFinished" not in jobset
    for rule in job["podFailurePolicy"]["rules"]:
        values = rule.get("onExitCodes", {}).get("values", [1])
        assert values == sorted(set(values))
        assert 0 not in values
