"""Releases that are known not to work are rejected by name; what nobody tested is told, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.launch.checks.operators import NotAllowed, Read, judge, needs, read_table
from tests.cluster.openapi import installed

ALL = needs("trainjob", "darkroom")
CRDS = Path(__file__).parents[4] / "shared" / "crds"


def told(answers: Mapping[str, Any], pipelines: str = "2.17.0", needed: set[str] = ALL) -> list[tuple[bool, str]]:
    return [(finding.is_error, finding.text) for finding in judge(answers.get, pipelines, needed)]


def test_what_was_tested_is_not_worth_a_word() -> None:
    assert told(installed()) == []
    assert told(installed(), "v2.17.1") == []


@pytest.mark.parametrize(
    ("releases", "lacking", "text"),
    [
        ({"Kubeflow Trainer": "2.1.0"}, "", "Kubeflow Trainer 2.1 or older has no runtimePatches"),
        ({}, "Kubeflow Trainer", "Kubeflow Trainer 2.1 or older has no runtimePatches"),
        ({}, "JobSet", "JobSet 0.9 or older cannot tell a preemption from a crash"),
        ({"Kueue": "0.17.3"}, "", "Kueue 0.17.3 admitted TrainJobs that never started"),
    ],
)
def test_a_release_that_is_known_not_to_work_is_rejected_by_name(
    releases: dict[str, str], lacking: str, text: str
) -> None:
    [(is_error, message)] = told(installed(releases, lacking))
    assert is_error
    assert message.startswith(text)
    assert "; install " in message


def test_kubeflow_pipelines_is_judged_by_what_it_says_itself() -> None:
    assert told(installed(), "1.8.5")[0] == (
        True, "Kubeflow Pipelines 1.x has no API v2beta1, and cannot read what the SDK 2.17 compiles; install 2.17.0"
    )  # fmt: skip
    assert [text for _, text in told(installed(), "2.14.2")] == [
        "Kubeflow Pipelines 2.14.2 may hang in loops (kubeflow/pipelines#12131): keep ingest.lanes small",
        "Kubeflow Pipelines 2.14.2 is not tested with this release of Darkroom; 2.17.x is",
    ]
    assert told(installed(), "") == [(False, "Kubeflow Pipelines: its release is not known; tested with 2.17.x")]


def test_a_release_that_nobody_tested_is_told() -> None:
    assert told(installed({"Kueue": "0.21.0"})) == [
        (False, "Kueue 0.21.0 is not tested with this release of Darkroom; 0.19.x is")
    ]
    # 0.170 is not 0.17.3, and 2.30 is not 2.3.
    assert [error for error, _ in told(installed({"Kueue": "0.170.3", "Kubeflow Trainer": "2.30"}))] == [False, False]


def test_what_is_not_installed_is_only_missed_by_runs_that_need_it() -> None:
    messages = [text for error, text in told({}) if error]
    assert messages[0].startswith(
        "Kubeflow Trainer: this cluster does not serve trainer.kubeflow.org/v1alpha1; install"
    )
    assert len(messages) == 3
    assert told({}, needed=needs("local", "darkroom")) == []
    assert len(told({}, needed=needs("trainjob", None))) == 2


def test_what_may_not_be_read_is_a_warning() -> None:
    answers = installed()

    def schemas_alone(path: str) -> Mapping[str, Any] | None:
        if not path.startswith("/openapi/"):
            raise NotAllowed(f"{path} answers 403 Forbidden")
        return answers.get(path)

    def nothing(path: str) -> Mapping[str, Any] | None:
        raise NotAllowed(f"{path} answers 403 Forbidden")

    for read in (schemas_alone, nothing):
        findings = list(judge(read, "2.17.0", ALL))
        assert [finding.is_error for finding in findings] == [False] * 3
        assert all("403 Forbidden" in finding.text for finding in findings)
    no_access: Read | None = None
    assert [finding.text for finding in judge(no_access, "2.17.0", ALL)] == [
        "no access to the Kubernetes API from here, so installed operators were not checked"
    ]


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"{CRDS} is not there")
def test_the_fields_that_tell_a_release_are_in_the_real_schemas() -> None:
    answers: dict[str, Any] = {}
    for file in CRDS.glob("*/*.yaml"):
        text = file.read_text("utf-8")
        if not any(f"\n    kind: {operator.get('kind')}\n" in text for operator in read_table()):
            continue
        spec = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            kind = [{"kind": spec["names"]["kind"]}]
            schemas = {"one": {**schema, "x-kubernetes-group-version-kind": kind}}
            answers[f"/openapi/v3/apis/{spec['group']}/{version['name']}"] = {"components": {"schemas": schemas}}
    assert [text for error, text in told(answers) if error] == []
