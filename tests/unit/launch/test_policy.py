"""What a launcher does next: every rule by itself, and all of them over years of reclaims and prices."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from pipeline.launch.config import LaunchConfig
from pipeline.launch.policy import FATES, RULES, Action, End, Phase, Sight, Standing, Terms, after, decide, fate, first
from pipeline.placement import PlacementConfig, spot_grace

HOUR = 3600.0
START = 1_000_000.0


def terms(launch: dict[str, Any] | None = None, **placement: Any) -> Terms:
    return Terms(LaunchConfig.parse(launch or {}), PlacementConfig.parse({"cloud": "gke", "nodes": 4, **placement}))


def standing(**changes: Any) -> Standing:
    return replace(first(terms(), START), **changes)


@pytest.mark.parametrize(
    ("code", "taken", "how"),
    [
        (0, False, "done"),
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
        (0, True, "done"),
    ],
)
def test_how_a_gang_goes_on_is_told_by_its_exit_code(code: int, taken: bool, how: str) -> None:
    assert fate(code, taken) == how


def test_every_code_of_the_design_has_a_fate() -> None:
    assert FATES == {0: "done", 75: "free", 71: "free", 78: "fatal", 65: "fatal"}


@pytest.mark.parametrize(
    ("placement", "pool"), [({}, "spot"), ({"spot": False}, "on-demand"), ({"cloud": "kind"}, "on-demand")]
)
def test_a_run_begins_in_its_first_pool_with_all_of_its_nodes(placement: dict[str, Any], pool: Any) -> None:
    begun = first(terms(min_nodes=2, **placement), START, step=70)
    assert begun == Standing(began=START, pool=pool, nodes=4, since=START, step=70)


WAITED = {"pool": "spot", "waits": START}
# Standing, sight, launch settings, placement; then what is done, why, and what has changed in the standing.
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], str, str, dict[str, Any]]
CASES: dict[str, Case] = {
    "asked": ({}, {"phase": "running", "asked": True}, {}, {}, "stop", "asked", {}),
    "asked while it waits": (WAITED, {"phase": "waiting", "asked": True}, {}, {}, "stop", "asked", {}),
    "no budget": ({}, {"phase": "running", "spent": 1e9}, {}, {}, "wait", "", {}),
    "in budget": ({}, {"phase": "running", "spent": 7.4, "rate": 0.1}, {"budget_usd": 10}, {}, "wait", "", {}),
    "at the budget but for the grace": (
        {}, {"phase": "running", "spent": 7.5, "rate": 0.1}, {"budget_usd": 10}, {}, "stop", "budget", {},
    ),
    "the grace of another cloud": (
        {}, {"phase": "running", "spent": 1, "rate": 0.1}, {"budget_usd": 10}, {"cloud": "eks"}, "stop", "budget", {},
    ),
    "no money left to start": ({}, {"phase": "none", "spent": 10.0}, {"budget_usd": 10}, {}, "stop", "budget", {}),
    "deadline": ({}, {"phase": "running", "now": START + 2 * HOUR}, {"deadline_hours": 2}, {}, "stop", "deadline", {}),
    "a deadline is not put off by another pool": (
        {"pool": "on-demand", "since": START + HOUR}, {"phase": "running", "now": START + 2 * HOUR},
        {"deadline_hours": 2}, {}, "stop", "deadline", {},
    ),
    "nor by a job that is leaving": (
        {}, {"phase": "leaving", "now": START + 2 * HOUR}, {"deadline_hours": 2}, {}, "stop", "deadline", {},
    ),
    "before it": ({}, {"phase": "running", "now": START + HOUR}, {"deadline_hours": 2}, {}, "wait", "", {}),
    "stuck": (WAITED, {"phase": "waiting", "stuck": "no image"}, {}, {}, "fail", "stuck", {}),
    "submit": ({}, {"phase": "none", "now": START + 5}, {}, {}, "submit", "", {"waits": START + 5}),
    "leaving": ({}, {"phase": "leaving", "now": START + 9 * HOUR}, {}, {}, "wait", "leaving", {}),
    "the wait begins": ({}, {"phase": "waiting", "now": START + 5}, {}, {}, "wait", "", {"waits": START + 5}),
    "the wait ends": (WAITED, {"phase": "running", "now": START + 5 * HOUR}, {}, {}, "wait", "", {"waits": None}),
    "spot comes in time": (WAITED, {"phase": "waiting", "now": START + 1799}, {}, {}, "wait", "", {}),
    "spot does not come": (
        WAITED, {"phase": "waiting", "now": START + 1800}, {}, {}, "withdraw", "fallback",
        {"pool": "on-demand", "since": START + 1800, "waits": None},
    ),
    "spot is waited for for ever": (
        WAITED, {"phase": "waiting", "now": START + 99 * HOUR}, {"fallback": {"wait_minutes": None}}, {},
        "wait", "", {},
    ),
    "spot does not stay": (
        {"pool_preemptions": 20}, {"phase": "running"}, {}, {}, "withdraw", "fallback",
        {"pool": "on-demand", "pool_preemptions": 0},
    ),
    "nor while there is no job": (
        {"pool_preemptions": 20}, {"phase": "none"}, {}, {}, "withdraw", "fallback",
        {"pool": "on-demand", "pool_preemptions": 0},
    ),
    "preemptions on on-demand machines": (
        {"pool": "on-demand", "pool_preemptions": 20}, {"phase": "running"}, {}, {}, "wait", "", {},
    ),
    "back to spot": (
        {"pool": "on-demand", "nodes": 2}, {"phase": "running", "now": START + 6 * HOUR},
        {"fallback": {"return_to_spot_hours": 6}}, {}, "withdraw", "return-to-spot",
        {"pool": "spot", "nodes": 4, "since": START + 6 * HOUR},
    ),
    "never back": ({"pool": "on-demand"}, {"phase": "running", "now": START + 999 * HOUR}, {}, {}, "wait", "", {}),
    "no spot to go back to": (
        {"pool": "on-demand"}, {"phase": "running", "now": START + 9 * HOUR}, {"fallback": {"return_to_spot_hours": 6}},
        {"spot": False}, "wait", "", {},
    ),
    "nor on a cloud that has none": (
        {"pool": "on-demand"}, {"phase": "running", "now": START + 9 * HOUR}, {"fallback": {"return_to_spot_hours": 6}},
        {"cloud": "kind"}, "wait", "", {},
    ),
    "some came, and are enough": (
        WAITED, {"phase": "waiting", "scheduled": 3, "now": START + 1800}, {}, {"min_nodes": 2}, "withdraw", "shrink",
        {"nodes": 3, "waits": None},
    ),
    "just the fewest came": (
        WAITED, {"phase": "waiting", "scheduled": 2, "now": START + 1800}, {}, {"min_nodes": 2}, "withdraw", "shrink",
        {"nodes": 2, "waits": None},
    ),
    "all came, but do not all run": (
        WAITED, {"phase": "waiting", "scheduled": 4, "now": START + 1799}, {}, {"min_nodes": 2}, "wait", "", {},
    ),
    "the other pool comes before fewer nodes": (
        WAITED, {"phase": "waiting", "now": START + 900}, {"shrink_wait_minutes": 10}, {"min_nodes": 2}, "wait", "", {},
    ),
    "unless there is no other pool to go to": (
        WAITED, {"phase": "waiting", "now": START + 900},
        {"shrink_wait_minutes": 10, "fallback": {"wait_minutes": None}},
        {"min_nodes": 2}, "withdraw", "shrink", {"nodes": 2},
    ),
    "some came, but too few": (
        WAITED, {"phase": "waiting", "scheduled": 1, "now": START + 1800}, {}, {"min_nodes": 2}, "withdraw", "fallback",
        {"pool": "on-demand"},
    ),
    "none of the last resort": (
        {**WAITED, "pool": "on-demand"}, {"phase": "waiting", "now": START + 1800}, {}, {"min_nodes": 1}, "withdraw",
        "shrink", {"nodes": 2},
    ),
    "not below the fewest": (
        {**WAITED, "pool": "on-demand", "nodes": 3}, {"phase": "waiting", "now": START + 1800}, {}, {"min_nodes": 2},
        "withdraw", "shrink", {"nodes": 2},
    ),
    "fewer is not allowed": (
        {**WAITED, "pool": "on-demand"}, {"phase": "waiting", "now": START + 99 * HOUR}, {}, {}, "wait", "", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_rule_that_holds_decides(name: str) -> None:
    was, seen, launch, placement, do, why, changes = CASES[name]
    before = standing(**was)
    now, action = decide(before, Sight(**{"now": START, **seen}), terms(launch, **placement))
    assert action == Action(do, why)  # type: ignore[arg-type]
    different = {name for name, value in vars(now).items() if value != vars(before)[name]}
    assert {name: vars(now)[name] for name in changes} == changes
    assert different <= changes.keys() | {"waits", "since"}


def test_every_rule_has_a_case() -> None:
    told = {(case[4], case[5]) for case in CASES.values()}
    assert {(rule.do, rule.why) for rule in RULES} <= told


@pytest.mark.parametrize(
    ("was", "end", "launch", "do", "why"),
    [
        ({}, End(75, False, 5), {}, "wait", "free"),
        ({}, End(1, False, 5), {}, "wait", "counted"),
        ({}, End(0, False, 5), {}, "wait", "done"),
        ({}, End(78, False, 5), {}, "fail", "refused"),
        ({}, End(65, True, 5), {}, "fail", "refused"),
        ({"crashes": 2}, End(1, False, 5), {}, "wait", "counted"),
        ({"crashes": 3}, End(1, False, 5), {}, "fail", "limits"),
        ({"crashes": 3}, End(137, True, 5), {}, "wait", "free"),
        ({"preemptions": 999}, End(75, False, 5), {}, "wait", "free"),
        ({"preemptions": 1000}, End(75, False, 5), {}, "fail", "limits"),
        ({"fruitless": 9, "step": 5}, End(75, False, 5), {}, "wait", "free"),
        ({"fruitless": 10, "step": 5}, End(75, False, 5), {}, "fail", "no-progress"),
        ({"fruitless": 10, "step": 4}, End(75, False, 5), {}, "wait", "free"),
        ({"fruitless": 10, "step": 5}, End(0, False, 5), {}, "wait", "done"),
        (
            {"fruitless": 2, "step": 5},
            End(1, False, 0),
            {"restarts": {"max_without_progress": 2}},
            "fail",
            "no-progress",
        ),
    ],
)
def test_after_a_gang_has_ended(was: dict[str, Any], end: End, launch: dict[str, Any], do: str, why: str) -> None:
    before = standing(waits=START, pool_preemptions=3, **was)
    now, action = after(before, end, terms(launch))
    how = fate(end.code, end.taken)
    assert action == Action(do, why)  # type: ignore[arg-type]
    assert now == replace(
        before,
        step=max(before.step, end.step),
        preemptions=before.preemptions + (how == "free"),
        pool_preemptions=before.pool_preemptions + (how == "free"),
        crashes=before.crashes + (how == "counted"),
        fruitless=0 if end.step > before.step or end.code == 0 else before.fruitless + 1,
        waits=None,
    )


class Market:
    """Hours of a cloud: whether spot machines are to be had, what they cost, and when they are taken away."""

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
    """A run through such a market, looked at every ten minutes; a step takes a minute."""

    POLL = 600.0
    ON_DEMAND = 4.0

    def __init__(self, seed: int, limits: Terms, steps: int, checkpoint_every: int) -> None:
        self.market = Market(seed, hours=4000)
        self.draw = random.Random(seed + 1)
        self.terms, self.steps, self.every = limits, steps, checkpoint_every
        self.standing = first(limits, START)
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
        return self.standing.nodes * (spot if self.standing.pool == "spot" else self.ON_DEMAND) / HOUR

    def run(self) -> None:
        while not self.outcome and self.hour < 3999:
            held = self.rate() if self.phase == "running" else 0.0
            rate = self.rate() if self.phase in ("running", "none") else 0.0
            sight = Sight(self.now, self.phase, 0, self.spent, rate)
            most = self.standing.step
            self.standing, action = decide(self.standing, sight, self.terms)
            assert self.standing.step >= most, "what is saved is never forgotten"
            self.act(action)
            self.spent += held * self.POLL if self.phase == "running" else 0.0
            self.now += self.POLL
            self.world()

    def act(self, action: Action) -> None:
        if action.do == "submit":
            assert self.phase == "none", "there is no second job"
            self.jobs, self.phase = self.jobs + 1, "waiting"
        elif action.do == "withdraw":
            self.actions.append(action.why)
            if self.phase == "running":
                self.saved = self.step
            self.phase = "none"
        elif action.do in ("stop", "fail"):
            if self.phase == "running":
                self.saved = self.step
                self.spent += self.rate() * spot_grace(self.terms.placement)
            self.phase, self.outcome = "none", action.why

    def world(self) -> None:
        """Let ten minutes pass on the machines."""
        spot = self.standing.pool == "spot"
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
        self.standing, action = after(self.standing, End(code, True, self.saved), self.terms)
        self.phase, self.step = "waiting", self.saved
        if action.do == "fail":
            self.outcome = action.why


@pytest.mark.parametrize("seed", range(12))
def test_years_of_a_spot_market(seed: int) -> None:
    budget = 4000.0 if seed % 3 else 600.0
    launch = {"budget_usd": budget, "fallback": {"preemptions": 12, "return_to_spot_hours": 24}, "poll_seconds": 60}
    limits = terms({**launch, "deadline_hours": 3000, "restarts": {"max_without_progress": 30}})
    run = Simulation(seed, limits, steps=12_000, checkpoint_every=45)
    run.run()
    assert run.outcome in ("done", "budget"), run.outcome
    dearest = limits.placement.nodes * Simulation.ON_DEMAND / HOUR
    assert run.spent <= budget + dearest * Simulation.POLL, "at most one look beyond"
    if run.outcome == "budget":
        assert run.spent > budget - 2 * dearest * Simulation.POLL, "no money is left lying"
    else:
        assert run.step >= run.steps
    assert run.saved <= run.step
    assert "fallback" in run.actions, "spot machines were away for hours"
    assert "return-to-spot" in run.actions
    assert run.jobs == 1 + len(run.actions), "one job after the other"


def test_without_spot_machines_it_costs_more_and_without_fallback_it_takes_longer() -> None:
    def result(seed: int, **launch: Any) -> tuple[float, float]:
        spot = launch.pop("spot", True)
        run = Simulation(seed, terms(launch, spot=spot), steps=6000, checkpoint_every=45)
        run.run()
        assert run.outcome == "done"
        return run.spent, run.now - START

    for seed in range(4):
        mixed = result(seed, fallback={"return_to_spot_hours": 6})
        safe = result(seed, spot=False)
        patient = result(seed, fallback={"wait_minutes": None, "preemptions": None})
        assert patient[0] < mixed[0] < safe[0]
        assert safe[1] <= mixed[1] <= patient[1]
