"""What a launcher does next: each rule by itself, and all of them over simulated months of a spot market."""

from __future__ import annotations

import random
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
    Phase,
    decide,
    initial_state,
    record_exit,
    restart_kind,
)
from pipeline.placement import PlacementConfig, spot_grace

HOUR = 3600.0
START = 1_000_000.0


def limits(launch: dict[str, Any] | None = None, **placement: Any) -> LaunchLimits:
    return LaunchLimits(
        LaunchConfig.parse(launch or {}), PlacementConfig.parse({"cloud": "gke", "nodes": 4, **placement})
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


class Market:
    """Hours of a cloud: whether there are spot nodes, what they cost, and when they are reclaimed."""

    def __init__(self, seed: int, hours: int) -> None:
        draw = random.Random(seed)
        price, scarce = 1.0, False
        self.price, self.has_spot, self.reclaimed = [], [], []
        for _ in range(hours):
            price = min(3.0, max(0.3, price * draw.lognormvariate(0, 0.05)))
            scarce = draw.random() < (0.9 if scarce else 0.04)
            self.price.append(price)
            self.has_spot.append(not scarce)
            self.reclaimed.append(draw.random() < (0.8 if scarce else 0.05) * price)


class Simulation:
    """A run in such a market, polled every ten minutes; a step takes a minute."""

    POLL = 600.0
    ON_DEMAND = 4.0

    def __init__(self, seed: int, policy: LaunchLimits, steps: int, checkpoint_every: int) -> None:
        self.market = Market(seed, hours=4000)
        self.draw = random.Random(seed + 1)
        self.limits, self.steps, self.every = policy, steps, checkpoint_every
        self.state = initial_state(policy, START)
        self.now, self.spent = START, 0.0
        self.jobs = 0
        self.phase: Phase = "none"
        self.step = self.saved = 0
        self.actions: list[str] = []
        self.outcome = ""

    @property
    def hour(self) -> int:
        return min(int((self.now - START) // HOUR), 3999)

    def rate(self) -> float:
        spot = self.market.price[self.hour]
        return self.state.nodes * (spot if self.state.pool == "spot" else self.ON_DEMAND) / HOUR

    def run(self) -> None:
        while not self.outcome and self.hour < 3999:
            held = self.rate() if self.phase == "running" else 0.0
            rate = self.rate() if self.phase in ("running", "none") else 0.0
            observation = Observation(self.now, self.phase, 0, self.spent, rate)
            saved = self.state.checkpoint_step
            self.state, action = decide(self.state, observation, self.limits)
            assert self.state.checkpoint_step >= saved, "a checkpoint is never forgotten"
            self.act(action)
            self.spent += held * self.POLL if self.phase == "running" else 0.0
            self.now += self.POLL
            self.let_time_pass()

    def act(self, action: Action) -> None:
        if action.kind == "submit":
            assert self.phase == "none", "there is never a second job"
            self.jobs, self.phase = self.jobs + 1, "waiting"
        elif action.kind == "replace":
            self.actions.append(action.reason)
            if self.phase == "running":
                self.saved = self.step
            self.phase = "none"
        elif action.kind in ("stop", "fail"):
            if self.phase == "running":
                self.saved = self.step
                self.spent += self.rate() * spot_grace(self.limits.placement)
            self.phase, self.outcome = "none", action.reason

    def let_time_pass(self) -> None:
        """Let ten minutes pass on the nodes."""
        spot = self.state.pool == "spot"
        if self.phase == "waiting" and (not spot or self.market.has_spot[self.hour]):
            self.phase, self.step = "running", self.saved
        elif self.phase == "running":
            self.step += 10
            self.saved = max(self.saved, self.step - self.step % self.every)
            if self.step >= self.steps:
                self.outcome = "done"
            elif spot and self.market.reclaimed[self.hour] and self.draw.random() < 0.3:
                if self.draw.random() < 0.7:  # the notice came in time
                    self.saved = self.step
                self.end(75 if self.saved == self.step else 137)

    def end(self, code: int) -> None:
        self.state, action = record_exit(self.state, GangExit(code, True, self.saved), self.limits)
        self.phase, self.step = "waiting", self.saved
        if action.kind == "fail":
            self.outcome = action.reason


@pytest.mark.parametrize("seed", range(12))
def test_months_of_a_spot_market(seed: int) -> None:
    budget = 4000.0 if seed % 3 else 600.0
    launch = {"budget_usd": budget, "fallback": {"preemptions": 12, "return_to_spot_hours": 24}, "poll_seconds": 60}
    policy = limits({**launch, "deadline_hours": 3000, "restarts": {"max_without_progress": 30}})
    run = Simulation(seed, policy, steps=12_000, checkpoint_every=45)
    run.run()
    assert run.outcome in ("done", "budget"), run.outcome
    most_usd_per_second = policy.placement.nodes * Simulation.ON_DEMAND / HOUR
    assert run.spent <= budget + most_usd_per_second * Simulation.POLL, "at most one poll beyond it"
    if run.outcome == "budget":
        assert run.spent > budget - 2 * most_usd_per_second * Simulation.POLL, "the budget is used"
    else:
        assert run.step >= run.steps
    assert run.saved <= run.step
    assert "fallback" in run.actions, "there were no spot nodes for hours"
    assert "return-to-spot" in run.actions
    assert run.jobs == 1 + len(run.actions), "one job after the other"


def test_without_spot_nodes_it_costs_more_and_without_fallback_it_takes_longer() -> None:
    def result(seed: int, **launch: Any) -> tuple[float, float]:
        spot = launch.pop("spot", True)
        run = Simulation(seed, limits(launch, spot=spot), steps=6000, checkpoint_every=45)
        run.run()
        assert run.outcome == "done"
        return run.spent, run.now - START

    for seed in range(4):
        mixed = result(seed, fallback={"return_to_spot_hours": 6})
        safe = result(seed, spot=False)
        patient = result(seed, fallback={"wait_minutes": None, "preemptions": None})
        assert patient[0] < mixed[0] < safe[0]
        assert safe[1] <= mixed[1] <= patient[1]
