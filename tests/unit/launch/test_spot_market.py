"""The launcher's policy over simulated months of a spot market."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.launch.policy import (
    Action,
    GangExit,
    LaunchLimits,
    Observation,
    Phase,
    decide,
    initial_state,
    record_exit,
)
from pipeline.placement import ending_seconds
from tests.unit.launch.test_policy import HOUR, START, limits


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
                self.spent += self.rate() * ending_seconds(self.limits.training, self.limits.placement, self.state.pool)
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
