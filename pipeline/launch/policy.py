"""What to do next about a training on machines that may be taken away: rules as data, and the clock passed in (pure).

Two questions are answered here. When all processes of a gang have ended: is that to be started again, and does it count
(`after`)? And at every look at the cluster: wait, submit, move to other machines, or stop (`decide`)? The first rule of
`RULES` that holds answers the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from components.errors import EXIT_DONE, ConfigError, DataError, OutOfMemory, Preempted
from pipeline.cost.forecast import HOUR, Budget
from pipeline.launch.config import LaunchConfig
from pipeline.placement import PRESETS, PlacementConfig, Pool, spot_grace

Fate = Literal["done", "free", "counted", "fatal"]
Phase = Literal["none", "waiting", "running", "leaving"]
Do = Literal["wait", "submit", "withdraw", "stop", "fail"]

# How a gang that ended so goes on; all other codes count as a crash. The chart's failure policy says the same.
# A batch that did not fit comes back half as large, so it mends itself after a few starts.
FATES: dict[int, Fate] = {
    EXIT_DONE: "done",
    Preempted.exit_code: "free",
    OutOfMemory.exit_code: "free",
    ConfigError.exit_code: "fatal",
    DataError.exit_code: "fatal",
}


@dataclass(frozen=True)
class Standing:
    """What is remembered of a run's launches; times are in seconds since 1970.

    Attributes:
        began: When training was first asked for.
        pool: Where machines come from now.
        nodes: How many machines are asked for now.
        since: When that pool was first asked.
        waits: Since when machines are waited for; None while all are there.
        step: Optimizer step of the newest checkpoint known.
        preemptions: Restarts that are free, in all.
        pool_preemptions: Those since ``since``.
        crashes: Restarts that count, in all.
        fruitless: Restarts in a row without a newer checkpoint.
    """

    began: float
    pool: Pool
    nodes: int
    since: float
    waits: float | None = None
    step: int = 0
    preemptions: int = 0
    pool_preemptions: int = 0
    crashes: int = 0
    fruitless: int = 0


class End(NamedTuple):
    """How a gang ended: its exit code, whether its machine was taken away, and the newest checkpoint's step."""

    code: int
    taken: bool
    step: int


class Sight(NamedTuple):
    """What is seen at one moment.

    Attributes:
        now: Seconds since 1970.
        phase: ``none``: there is no job; ``waiting``: not all machines are there; ``running``; ``leaving``: it is gone
            but for processes that still end.
        scheduled: Machines that are there.
        spent: $ so far, with those of the machines held now.
        rate: $ per second of the machines held now, or of those asked for next.
        asked: Whether this process was asked to stop.
        stuck: What keeps containers from starting that no waiting will mend.
    """

    now: float
    phase: Phase
    scheduled: int = 0
    spent: float = 0.0
    rate: float = 0.0
    asked: bool = False
    stuck: str | None = None


class Action(NamedTuple):
    """What to do, and why.

    Attributes:
        do: ``submit`` on machines as in the standing; ``withdraw`` the job, to submit another; ``stop`` for good, with
            the state saved; ``fail``; or ``wait``.
        why: A word for the record: ``budget``, ``deadline``, ``asked``, ``fallback``, …
    """

    do: Do
    why: str = ""


class Terms(NamedTuple):
    """The settings that decide."""

    launch: LaunchConfig
    placement: PlacementConfig

    @property
    def has_spot(self) -> bool:
        """Whether there is a choice between pools."""
        return self.placement.spot and PRESETS[self.placement.cloud].spot is not None

    @property
    def fewest(self) -> int:
        """The fewest machines to make do with."""
        return self.placement.min_nodes or self.placement.nodes


def first(terms: Terms, now: float, step: int = 0) -> Standing:
    """Return the standing of a run that has not been launched before."""
    return Standing(now, terms.placement.first_pool, terms.placement.nodes, since=now, step=step)


def fate(code: int, taken: bool = False) -> Fate:
    """Return how a gang goes on that ended with this code, or whose machine was taken away."""
    known = FATES.get(code, "counted")
    return "free" if taken and known == "counted" else known


def after(standing: Standing, end: End, terms: Terms) -> tuple[Standing, Action]:
    """Return the standing after a gang has ended, and whether to fail or to go on waiting for the next one."""
    how = fate(end.code, end.taken)
    fruitful = end.step > standing.step
    standing = replace(
        standing,
        step=max(end.step, standing.step),
        preemptions=standing.preemptions + (how == "free"),
        pool_preemptions=standing.pool_preemptions + (how == "free"),
        crashes=standing.crashes + (how == "counted"),
        fruitless=0 if fruitful or how == "done" else standing.fruitless + 1,
        waits=None,
    )
    restarts = terms.launch.restarts
    if how == "fatal":
        return standing, Action("fail", "refused")
    if how != "done" and (
        standing.preemptions > restarts.max_preemptions
        or standing.crashes > restarts.max_crashes
        or standing.fruitless > restarts.max_without_progress
    ):
        stuck = standing.fruitless > restarts.max_without_progress
        return standing, Action("fail", "no-progress" if stuck else "limits")
    return standing, Action("wait", how)


def decide(standing: Standing, sight: Sight, terms: Terms) -> tuple[Standing, Action]:
    """Return what to do about what is seen, and the standing from then on."""
    standing = replace(standing, waits=_waits(standing, sight))
    for rule in RULES:
        if rule.holds(standing, sight, terms):
            return rule.then(standing, sight, terms), Action(rule.do, rule.why)
    return standing, Action("wait")


def _waits(standing: Standing, sight: Sight) -> float | None:
    """Return since when machines are waited for: from the moment that they were asked for."""
    if sight.phase == "running":
        return None
    if sight.phase == "waiting":
        return standing.waits if standing.waits is not None else sight.now
    return standing.waits


class Rule(NamedTuple):
    """When something is to be done, and where the run stands then."""

    do: Do
    why: str
    holds: Callable[[Standing, Sight, Terms], bool]
    then: Callable[[Standing, Sight, Terms], Standing]


def _over_budget(_standing: Standing, sight: Sight, terms: Terms) -> bool:
    """Tell whether the money that is left only pays for the end: the next look and the grace to save."""
    usd = terms.launch.budget_usd
    if usd is None:
        return False
    budget = Budget(usd, terms.launch.poll_seconds, save_seconds=spot_grace(terms.placement))
    return budget.must_stop(sight.spent, usd_per_hour=sight.rate * HOUR)


def _late(standing: Standing, sight: Sight, terms: Terms) -> bool:
    hours = terms.launch.deadline_hours
    return hours is not None and sight.now - standing.began >= hours * 3600


def _waited(standing: Standing, sight: Sight, minutes: float | None) -> bool:
    """Tell whether machines have been waited for that long, in vain."""
    if sight.phase != "waiting" or standing.waits is None or minutes is None:
        return False
    return sight.now - standing.waits >= minutes * 60


def _few_are_enough(standing: Standing, sight: Sight, terms: Terms) -> bool:
    """Tell whether some machines came, and are enough to go on with."""
    enough = terms.fewest <= sight.scheduled < standing.nodes
    return enough and _waited(standing, sight, terms.launch.shrink_wait_minutes)


def _spot_does_not_come(standing: Standing, sight: Sight, terms: Terms) -> bool:
    return standing.pool == "spot" and _waited(standing, sight, terms.launch.fallback.wait_minutes)


def _spot_does_not_stay(standing: Standing, _sight: Sight, terms: Terms) -> bool:
    most = terms.launch.fallback.preemptions
    return standing.pool == "spot" and most is not None and standing.pool_preemptions >= most


def _none_come(standing: Standing, sight: Sight, terms: Terms) -> bool:
    """Tell whether nothing came of asking for so many machines, and fewer may be asked for."""
    has_other = standing.pool == "spot" and terms.launch.fallback.wait_minutes is not None
    fewer = terms.fewest < standing.nodes
    return fewer and not has_other and _waited(standing, sight, terms.launch.shrink_wait_minutes)


def _spot_again(standing: Standing, sight: Sight, terms: Terms) -> bool:
    hours = terms.launch.fallback.return_to_spot_hours
    away = standing.pool == "on-demand" and terms.has_spot
    return away and hours is not None and sight.now - standing.since >= hours * 3600


def _stay(standing: Standing, _sight: Sight, _terms: Terms) -> Standing:
    return standing


def _ask(standing: Standing, sight: Sight, _terms: Terms) -> Standing:
    return replace(standing, waits=sight.now)


def _to(pool: Pool) -> Callable[[Standing, Sight, Terms], Standing]:
    def move(standing: Standing, sight: Sight, terms: Terms) -> Standing:
        return replace(
            standing, pool=pool, nodes=terms.placement.nodes, since=sight.now, waits=None, pool_preemptions=0
        )

    return move


def _shrink(standing: Standing, sight: Sight, terms: Terms) -> Standing:
    """Ask for as many as came, or for half where none did."""
    fewer = sight.scheduled if sight.scheduled else standing.nodes // 2
    return replace(standing, nodes=max(fewer, terms.fewest), waits=None)


def _in(*phases: Phase) -> Callable[[Standing, Sight, Terms], bool]:
    return lambda _standing, sight, _terms: sight.phase in phases


# In the order in which they are asked. While a job is leaving nothing is decided but whether to wait for another one.
RULES: tuple[Rule, ...] = (
    Rule("stop", "asked", lambda _standing, sight, _terms: sight.asked, _stay),
    Rule("stop", "budget", _over_budget, _stay),
    Rule("stop", "deadline", _late, _stay),
    Rule("wait", "leaving", _in("leaving"), _stay),
    Rule("fail", "stuck", lambda _standing, sight, _terms: sight.stuck is not None, _stay),
    Rule("withdraw", "fallback", _spot_does_not_stay, _to("on-demand")),
    Rule("submit", "", _in("none"), _ask),
    Rule("withdraw", "shrink", _few_are_enough, _shrink),
    Rule("withdraw", "fallback", _spot_does_not_come, _to("on-demand")),
    Rule("withdraw", "shrink", _none_come, _shrink),
    Rule("withdraw", "return-to-spot", _spot_again, _to("spot")),
)
