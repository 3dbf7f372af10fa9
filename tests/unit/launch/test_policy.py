"""What a launcher does next: each rule by itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pipeline.launch.config import LaunchConfig
from pipeline.launch.policy import (
    RESTART_KINDS,
    RULES,
    Action,
    GangExit,
    LaunchLimits,
    LaunchState,
    Observation,
    decide,
    initial_state,
    record_exit,
    restart_kind,
)
from pipeline.placement import PlacementConfig

HOUR = 3600.0
START = 1_000_000.0


def limits(launch: dict[str, Any] | None = None, **placement: Any) -> LaunchLimits:
    return LaunchLimits(
        LaunchConfig.parse({"where": "trainjob", **(launch or {})}),
        PlacementConfig.parse({"cloud": "gke", "nodes": 4, **placement}),
    )


def state(**changes: Any) -> LaunchState:
    return replace(initial_state(limits(), START), **changes)


@pytest.mark.parametrize(
    ("exit_code", "node_lost", "kind"),
    [
        (0, False, "finished"),
        (75, False, "free"),
        (71, False, "free"),
        (78, False, "fatal"),
        (65, False, "fatal"),
        (1, False, "counted"),
        (124, False, "counted"),
        (137, False, "counted"),
        (137, True, "free"),
        (1, True, "free"),
        (78, True, "fatal"),
        (0, True, "finished"),
    ],
)
def test_the_exit_code_says_how_a_gang_is_restarted(exit_code: int, node_lost: bool, kind: str) -> None:
    assert restart_kind(exit_code, node_lost) == kind


def test_every_exit_code_of_the_design_has_a_restart_kind() -> None:
    assert RESTART_KINDS == {0: "finished", 75: "free", 71: "free", 78: "fatal", 65: "fatal"}


@pytest.mark.parametrize(
    ("placement", "pool"), [({}, "spot"), ({"spot": False}, "on-demand"), ({"cloud": "kind"}, "on-demand")]
)
def test_a_run_starts_in_its_first_pool_with_all_of_its_nodes(placement: dict[str, Any], pool: Any) -> None:
    started = initial_state(limits(min_nodes=2, **placement), START, checkpoint_step=70)
    assert started == LaunchState(started_at=START, pool=pool, nodes=4, pool_since=START, checkpoint_step=70)
    assert (started.preemptions, started.pool_preemptions, started.crashes, started.without_progress) == (0, 0, 0, 0)


WAITING = {"pool": "spot", "waiting_since": START}


@dataclass(frozen=True)
class Case:
    """An action and its reason, what they follow from beyond the defaults, and how the state changes."""

    kind: str
    reason: str
    observation: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)
    launch: dict[str, Any] = field(default_factory=dict)
    placement: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "stop requested": Case("stop", "stop-requested", {"phase": "running", "stop_requested": True}),
    "stop requested while it waits": Case(
        "stop", "stop-requested", {"phase": "waiting", "stop_requested": True}, state=WAITING
    ),
    "no budget": Case("wait", "", {"phase": "running", "spent_usd": 1e9}),
    "in budget": Case(
        "wait", "", {"phase": "running", "spent_usd": 7.4, "usd_per_second": 0.1}, launch={"budget_usd": 10}
    ),
    "at the budget but for the grace period": Case(
        "stop", "budget", {"phase": "running", "spent_usd": 7.5, "usd_per_second": 0.1}, launch={"budget_usd": 10}
    ),
    "the grace period of another cloud": Case(
        "stop",
        "budget",
        {"phase": "running", "spent_usd": 1, "usd_per_second": 0.1},
        launch={"budget_usd": 10},
        placement={"cloud": "eks"},
    ),
    "no money left to start": Case("stop", "budget", {"phase": "none", "spent_usd": 10.0}, launch={"budget_usd": 10}),
    "deadline": Case("stop", "deadline", {"phase": "running", "now": START + 2 * HOUR}, launch={"deadline_hours": 2}),
    "another pool does not put off the deadline": Case(
        "stop",
        "deadline",
        {"phase": "running", "now": START + 2 * HOUR},
        state={"pool": "on-demand", "pool_since": START + HOUR},
        launch={"deadline_hours": 2},
    ),
    "nor does a job that is terminating": Case(
        "stop", "deadline", {"phase": "terminating", "now": START + 2 * HOUR}, launch={"deadline_hours": 2}
    ),
    "before the deadline": Case("wait", "", {"phase": "running", "now": START + HOUR}, launch={"deadline_hours": 2}),
    "stuck": Case("fail", "stuck", {"phase": "waiting", "stuck_reason": "no image"}, state=WAITING),
    "quota, but no pods": Case(
        "replace",
        "never-started",
        {"phase": "waiting", "unstarted_since": START, "now": START + 600},
        state={**WAITING, "crashes": 2},
        changes={"crashes": 3, "waiting_since": None},
    ),
    "quota, but no pods, once too often": Case(
        "fail",
        "never-started",
        {"phase": "waiting", "unstarted_since": START, "now": START + 600},
        state={**WAITING, "crashes": 3},
    ),
    "quota, and pods take their time": Case(
        "wait", "", {"phase": "waiting", "unstarted_since": START, "now": START + 599}, state=WAITING
    ),
    "at the budget but for what saving takes on demand": Case(
        "stop",
        "budget",
        {"phase": "running", "spent_usd": 60, "usd_per_second": 0.1},
        state={"pool": "on-demand"},
        launch={"budget_usd": 121.6},  # 600 s to save, 5 s for ranks that crash, 1 s, and a poll
    ),
    "a small budget is not kept back whole on one's own machine": Case(
        "wait",
        "",
        {"phase": "running", "spent_usd": 7.4, "usd_per_second": 0.1},
        state={"pool": "on-demand"},
        launch={"budget_usd": 10, "where": "local"},
    ),
    "in budget on demand": Case(
        "wait",
        "",
        {"phase": "running", "spent_usd": 60, "usd_per_second": 0.1},
        state={"pool": "on-demand"},
        launch={"budget_usd": 121.7},
    ),
    "submit": Case("submit", "", {"phase": "none", "now": START + 5}, changes={"waiting_since": START + 5}),
    "terminating": Case("wait", "terminating", {"phase": "terminating", "now": START + 9 * HOUR}),
    "the wait begins": Case("wait", "", {"phase": "waiting", "now": START + 5}, changes={"waiting_since": START + 5}),
    "the wait ends": Case(
        "wait", "", {"phase": "running", "now": START + 5 * HOUR}, state=WAITING, changes={"waiting_since": None}
    ),
    "spot nodes come in time": Case("wait", "", {"phase": "waiting", "now": START + 1799}, state=WAITING),
    "no spot nodes come": Case(
        "replace",
        "fallback",
        {"phase": "waiting", "now": START + 1800},
        state=WAITING,
        changes={"pool": "on-demand", "pool_since": START + 1800, "waiting_since": None},
    ),
    "spot nodes are waited for without limit": Case(
        "wait",
        "",
        {"phase": "waiting", "now": START + 99 * HOUR},
        state=WAITING,
        launch={"fallback": {"wait_minutes": None}},
    ),
    "spot nodes do not stay": Case(
        "replace",
        "fallback",
        {"phase": "running"},
        state={"pool_preemptions": 20},
        changes={"pool": "on-demand", "pool_preemptions": 0},
    ),
    "spot nodes do not stay, and there is no job": Case(
        "replace",
        "fallback",
        {"phase": "none"},
        state={"pool_preemptions": 20},
        changes={"pool": "on-demand", "pool_preemptions": 0},
    ),
    "preemptions on on-demand nodes": Case(
        "wait", "", {"phase": "running"}, state={"pool": "on-demand", "pool_preemptions": 20}
    ),
    "back to spot": Case(
        "replace",
        "return-to-spot",
        {"phase": "running", "now": START + 6 * HOUR},
        state={"pool": "on-demand", "nodes": 2},
        launch={"fallback": {"return_to_spot_hours": 6}},
        changes={"pool": "spot", "nodes": 4, "pool_since": START + 6 * HOUR},
    ),
    "never back": Case("wait", "", {"phase": "running", "now": START + 999 * HOUR}, state={"pool": "on-demand"}),
    "no spot to go back to": Case(
        "wait",
        "",
        {"phase": "running", "now": START + 9 * HOUR},
        state={"pool": "on-demand"},
        launch={"fallback": {"return_to_spot_hours": 6}},
        placement={"spot": False},
    ),
    "no spot on this cloud": Case(
        "wait",
        "",
        {"phase": "running", "now": START + 9 * HOUR},
        state={"pool": "on-demand"},
        launch={"fallback": {"return_to_spot_hours": 6}},
        placement={"cloud": "kind"},
    ),
    "some came, and are enough": Case(
        "replace",
        "shrink",
        {"phase": "waiting", "scheduled_nodes": 3, "now": START + 1800},
        state=WAITING,
        placement={"min_nodes": 2},
        changes={"nodes": 3, "waiting_since": None},
    ),
    "just min_nodes came": Case(
        "replace",
        "shrink",
        {"phase": "waiting", "scheduled_nodes": 2, "now": START + 1800},
        state=WAITING,
        placement={"min_nodes": 2},
        changes={"nodes": 2, "waiting_since": None},
    ),
    "all came, but not all run": Case(
        "wait",
        "",
        {"phase": "waiting", "scheduled_nodes": 4, "now": START + 1799},
        state=WAITING,
        placement={"min_nodes": 2},
    ),
    "the other pool comes before fewer nodes": Case(
        "wait",
        "",
        {"phase": "waiting", "now": START + 900},
        state=WAITING,
        launch={"shrink_wait_minutes": 10},
        placement={"min_nodes": 2},
    ),
    "fewer nodes if there is no other pool": Case(
        "replace",
        "shrink",
        {"phase": "waiting", "now": START + 900},
        state=WAITING,
        launch={"shrink_wait_minutes": 10, "fallback": {"wait_minutes": None}},
        placement={"min_nodes": 2},
        changes={"nodes": 2},
    ),
    "half of an odd number is rounded down": Case(
        "replace",
        "shrink",
        {"phase": "waiting", "now": START + 900},
        state={**WAITING, "nodes": 5},
        launch={"shrink_wait_minutes": 10, "fallback": {"wait_minutes": None}},
        placement={"min_nodes": 1},
        changes={"nodes": 2},
    ),
    "some came, but too few": Case(
        "replace",
        "fallback",
        {"phase": "waiting", "scheduled_nodes": 1, "now": START + 1800},
        state=WAITING,
        placement={"min_nodes": 2},
        changes={"pool": "on-demand"},
    ),
    "no on-demand nodes come": Case(
        "replace",
        "shrink",
        {"phase": "waiting", "now": START + 1800},
        state={**WAITING, "pool": "on-demand"},
        placement={"min_nodes": 1},
        changes={"nodes": 2},
    ),
    "not below min_nodes": Case(
        "replace",
        "shrink",
        {"phase": "waiting", "now": START + 1800},
        state={**WAITING, "pool": "on-demand", "nodes": 3},
        placement={"min_nodes": 2},
        changes={"nodes": 2},
    ),
    "fewer is not allowed": Case(
        "wait", "", {"phase": "waiting", "now": START + 99 * HOUR}, state={**WAITING, "pool": "on-demand"}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_rule_that_applies_decides(name: str) -> None:
    case = CASES[name]
    before = state(**case.state)
    observation = Observation(**{"now": START, **case.observation})
    after, action = decide(before, observation, limits(case.launch, **case.placement))
    assert action == Action(case.kind, case.reason)  # type: ignore[arg-type]
    assert {name: vars(after)[name] for name in case.changes} == case.changes
    changed = {name for name, value in vars(after).items() if value != vars(before)[name]}
    assert changed <= case.changes.keys() | {"waiting_since", "pool_since"}


def test_every_rule_has_a_case() -> None:
    assert {(rule.kind, rule.reason) for rule in RULES} <= {(case.kind, case.reason) for case in CASES.values()}


@pytest.mark.parametrize(
    ("values", "gang", "launch", "kind", "reason"),
    [
        ({}, GangExit(75, False, 5), {}, "wait", "free"),
        ({}, GangExit(1, False, 5), {}, "wait", "counted"),
        ({}, GangExit(0, False, 5), {}, "wait", "finished"),
        ({}, GangExit(78, False, 5), {}, "fail", "fatal"),
        ({}, GangExit(65, True, 5), {}, "fail", "fatal"),
        ({"crashes": 2}, GangExit(1, False, 5), {}, "wait", "counted"),
        ({"crashes": 3}, GangExit(1, False, 5), {}, "fail", "restart-limit"),
        ({"crashes": 3}, GangExit(137, True, 5), {}, "wait", "free"),
        ({"preemptions": 999}, GangExit(75, False, 5), {}, "wait", "free"),
        ({"preemptions": 1000}, GangExit(75, False, 5), {}, "fail", "restart-limit"),
        ({"without_progress": 9, "checkpoint_step": 5}, GangExit(75, False, 5), {}, "wait", "free"),
        ({"without_progress": 10, "checkpoint_step": 5}, GangExit(75, False, 5), {}, "fail", "no-progress"),
        ({"without_progress": 10, "checkpoint_step": 4}, GangExit(75, False, 5), {}, "wait", "free"),
        ({"without_progress": 10, "checkpoint_step": 5}, GangExit(0, False, 5), {}, "wait", "finished"),
        (
            {"without_progress": 2, "checkpoint_step": 5},
            GangExit(1, False, 0),
            {"restarts": {"max_without_progress": 2}},
            "fail",
            "no-progress",
        ),
    ],
)
def test_the_end_of_a_gang(
    values: dict[str, Any], gang: GangExit, launch: dict[str, Any], kind: str, reason: str
) -> None:
    before = state(waiting_since=START, pool_preemptions=3, **values)
    after, action = record_exit(before, gang, limits(launch))
    assert action == Action(kind, reason)  # type: ignore[arg-type]
    restart = restart_kind(gang.exit_code, gang.node_lost)
    has_progress = gang.checkpoint_step > before.checkpoint_step or gang.exit_code == 0
    assert after == replace(
        before,
        checkpoint_step=max(before.checkpoint_step, gang.checkpoint_step),
        preemptions=before.preemptions + (restart == "free"),
        pool_preemptions=before.pool_preemptions + (restart == "free"),
        crashes=before.crashes + (restart == "counted"),
        without_progress=0 if has_progress else before.without_progress + 1,
        waiting_since=None,
    )
