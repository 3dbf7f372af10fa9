"""What to do next about a training on nodes that may be reclaimed: rules as data, the clock passed in (pure).

Two questions are answered here:

- All processes of a gang have ended. Is the gang started again, and does the restart count? See `record_exit`.
- The launcher has looked at the cluster. Should it wait, submit a job, replace the job, or stop? See `decide`: the
  first rule of `RULES` that applies is followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from components.accounting.ledger import Pool
from components.errors import EXIT_DONE, ConfigError, DataError, OutOfMemory, Preempted
from components.train.config import LimitsConfig
from pipeline.cost.forecast import HOUR, Budget
from pipeline.launch.config import LaunchConfig
from pipeline.placement import PRESETS, PlacementConfig, ending_seconds, spot_grace

RestartKind = Literal["finished", "free", "counted", "fatal"]
Phase = Literal["none", "waiting", "running", "terminating"]
ActionKind = Literal["wait", "submit", "replace", "stop", "fail"]

# What an exit code means for the restart; all other codes count as a crash. The chart's failure policy agrees.
# A batch that did not fit into memory is halved, so a few free restarts solve that by themselves.
RESTART_KINDS: dict[int, RestartKind] = {
    EXIT_DONE: "finished",
    Preempted.exit_code: "free",
    OutOfMemory.exit_code: "free",
    ConfigError.exit_code: "fatal",
    DataError.exit_code: "fatal",
}


@dataclass(frozen=True)
class LaunchState:
    """The numbers that decide how a run is launched next; times are in seconds since 1970.

    Attributes:
        started_at: When the training was first launched.
        pool: The pool that nodes are requested from.
        nodes: How many nodes are requested.
        pool_since: When that pool was first used.
        waiting_since: Since when nodes are waited for; None while all are there.
        checkpoint_step: Optimizer step of the newest checkpoint.
        preemptions: All free restarts.
        pool_preemptions: Free restarts since ``pool_since``.
        crashes: All restarts that count.
        without_progress: Restarts in a row without a newer checkpoint.
    """

    started_at: float
    pool: Pool
    nodes: int
    pool_since: float
    waiting_since: float | None = None
    checkpoint_step: int = 0
    preemptions: int = 0
    pool_preemptions: int = 0
    crashes: int = 0
    without_progress: int = 0


class GangExit(NamedTuple):
    """How a gang ended: its exit code, whether it lost a node, and the step of the newest checkpoint."""

    exit_code: int
    node_lost: bool
    checkpoint_step: int


class Observation(NamedTuple):
    """What the launcher observes at one moment.

    Attributes:
        now: Seconds since 1970.
        phase: ``none``: there is no job; ``waiting``: some nodes are missing; ``running``; ``terminating``: the job is
            deleted, but some of its processes have not ended.
        scheduled_nodes: How many nodes are there.
        spent_usd: $ spent so far, including the nodes that are held now.
        usd_per_second: Price of the nodes that are held now, or of those that would be requested next.
        stop_requested: Whether this process was asked to stop.
        stuck_reason: Why a container cannot start, if waiting longer will not help.
        unstarted_since: Since when the job may have pods, and has none; None if it has some or may not have any.
    """

    now: float
    phase: Phase
    scheduled_nodes: int = 0
    spent_usd: float = 0.0
    usd_per_second: float = 0.0
    stop_requested: bool = False
    stuck_reason: str | None = None
    unstarted_since: float | None = None


class Action(NamedTuple):
    """What to do, and why.

    Attributes:
        kind: ``submit`` a job on the nodes of the launch state; ``replace`` the job: delete it, another one is
            submitted later; ``stop`` for good, with the state saved; ``fail``; or ``wait``.
        reason: A word for the log: ``budget``, ``deadline``, ``stop-requested``, ``fallback``, …
    """

    kind: ActionKind
    reason: str = ""


class LaunchLimits(NamedTuple):
    """The settings that the policy follows."""

    launch: LaunchConfig
    placement: PlacementConfig
    training: LimitsConfig = LimitsConfig()

    @property
    def has_spot(self) -> bool:
        """Whether there is a choice between pools."""
        return self.placement.spot and PRESETS[self.placement.cloud].spot is not None

    @property
    def min_nodes(self) -> int:
        """The fewest nodes that may train."""
        return self.placement.min_nodes or self.placement.nodes


def initial_state(limits: LaunchLimits, now: float, checkpoint_step: int = 0) -> LaunchState:
    """Return the state of a run that has not been launched before."""
    placement = limits.placement
    return LaunchState(now, placement.first_pool, placement.nodes, pool_since=now, checkpoint_step=checkpoint_step)


def restart_kind(exit_code: int, node_lost: bool = False) -> RestartKind:
    """Return how a gang that ended with this exit code is restarted; losing a node makes a crash free."""
    kind = RESTART_KINDS.get(exit_code, "counted")
    return "free" if node_lost and kind == "counted" else kind


def record_exit(state: LaunchState, gang: GangExit, limits: LaunchLimits) -> tuple[LaunchState, Action]:
    """Return the state after a gang has ended, and whether to ``fail`` or to ``wait`` for the next gang."""
    kind = restart_kind(gang.exit_code, gang.node_lost)
    has_progress = gang.checkpoint_step > state.checkpoint_step
    state = replace(
        state,
        checkpoint_step=max(gang.checkpoint_step, state.checkpoint_step),
        preemptions=state.preemptions + (kind == "free"),
        pool_preemptions=state.pool_preemptions + (kind == "free"),
        crashes=state.crashes + (kind == "counted"),
        without_progress=0 if has_progress or kind == "finished" else state.without_progress + 1,
        waiting_since=None,
    )
    if kind == "fatal":
        return state, Action("fail", "fatal")
    if kind == "finished":
        return state, Action("wait", kind)
    restarts = limits.launch.restarts
    if state.without_progress > restarts.max_without_progress:
        return state, Action("fail", "no-progress")
    if state.preemptions > restarts.max_preemptions or state.crashes > restarts.max_crashes:
        return state, Action("fail", "restart-limit")
    return state, Action("wait", kind)


def decide(state: LaunchState, observation: Observation, limits: LaunchLimits) -> tuple[LaunchState, Action]:
    """Return what to do about an observation, and the state from then on."""
    state = replace(state, waiting_since=_waiting_since(state, observation))
    for rule in RULES:
        if rule.applies(state, observation, limits):
            return rule.next_state(state, observation, limits), Action(rule.kind, rule.reason)
    return state, Action("wait")


def _waiting_since(state: LaunchState, observation: Observation) -> float | None:
    if observation.phase == "running":
        return None
    if observation.phase == "waiting" and state.waiting_since is None:
        return observation.now
    return state.waiting_since


Condition = Callable[[LaunchState, Observation, LaunchLimits], bool]
Transition = Callable[[LaunchState, Observation, LaunchLimits], LaunchState]


class Rule(NamedTuple):
    """An action, the condition under which it is taken, and how it changes the launch state."""

    kind: ActionKind
    reason: str
    applies: Condition
    next_state: Transition


def _stop_requested(_state: LaunchState, observation: Observation, _limits: LaunchLimits) -> bool:
    return observation.stop_requested


def _over_budget(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    """Tell whether the rest of the budget only pays for the end: one more poll, and what saving takes in this pool."""
    usd = limits.launch.budget_usd
    if usd is None:
        return False
    if limits.launch.where == "local":
        # All of the time that saving may take could be a whole small budget, and the price is one's own estimate.
        save_seconds: float = spot_grace(limits.placement)
    else:
        save_seconds = ending_seconds(limits.training, limits.placement, state.pool)
    budget = Budget(usd, limits.launch.poll_seconds, save_seconds)
    return budget.must_stop(observation.spent_usd, usd_per_hour=observation.usd_per_second * HOUR)


def _past_deadline(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    hours = limits.launch.deadline_hours
    return hours is not None and observation.now - state.started_at >= hours * HOUR


def _is_stuck(_state: LaunchState, observation: Observation, _limits: LaunchLimits) -> bool:
    return observation.stuck_reason is not None


def _never_starts(_state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    """Tell whether the job has its quota, and whoever makes its pods does not make them."""
    since = observation.unstarted_since
    return since is not None and observation.now - since >= limits.launch.unstarted_minutes * 60


def _never_starts_again(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    return _never_starts(state, observation, limits) and state.crashes >= limits.launch.restarts.max_crashes


def _has_waited(state: LaunchState, observation: Observation, minutes: float | None) -> bool:
    """Tell whether nodes have been waited for that long."""
    if observation.phase != "waiting" or state.waiting_since is None or minutes is None:
        return False
    return observation.now - state.waiting_since >= minutes * 60


def _enough_nodes(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    """Tell whether only some of the nodes came in time, and these are enough to train."""
    is_enough = limits.min_nodes <= observation.scheduled_nodes < state.nodes
    return is_enough and _has_waited(state, observation, limits.launch.shrink_wait_minutes)


def _spot_unavailable(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    return state.pool == "spot" and _has_waited(state, observation, limits.launch.fallback.wait_minutes)


def _spot_unstable(state: LaunchState, _observation: Observation, limits: LaunchLimits) -> bool:
    most = limits.launch.fallback.preemptions
    return state.pool == "spot" and most is not None and state.pool_preemptions >= most


def _too_few_nodes(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    """Tell whether the nodes did not come in time, no other pool is left, and fewer may be requested."""
    has_fallback = state.pool == "spot" and limits.launch.fallback.wait_minutes is not None
    may_shrink = limits.min_nodes < state.nodes
    return may_shrink and not has_fallback and _has_waited(state, observation, limits.launch.shrink_wait_minutes)


def _may_return_to_spot(state: LaunchState, observation: Observation, limits: LaunchLimits) -> bool:
    hours = limits.launch.fallback.return_to_spot_hours
    if state.pool != "on-demand" or not limits.has_spot or hours is None:
        return False
    return observation.now - state.pool_since >= hours * HOUR


def _phase_is(phase: Phase) -> Condition:
    return lambda _state, observation, _limits: observation.phase == phase


def _unchanged(state: LaunchState, _observation: Observation, _limits: LaunchLimits) -> LaunchState:
    return state


def _start_waiting(state: LaunchState, observation: Observation, _limits: LaunchLimits) -> LaunchState:
    return replace(state, waiting_since=observation.now)


def _count_crash(state: LaunchState, _observation: Observation, _limits: LaunchLimits) -> LaunchState:
    return replace(state, crashes=state.crashes + 1, waiting_since=None)


def _move_to(pool: Pool) -> Transition:
    def move(state: LaunchState, observation: Observation, limits: LaunchLimits) -> LaunchState:
        return replace(
            state,
            pool=pool,
            nodes=limits.placement.nodes,
            pool_since=observation.now,
            waiting_since=None,
            pool_preemptions=0,
        )

    return move


def _shrink(state: LaunchState, observation: Observation, limits: LaunchLimits) -> LaunchState:
    """Request as many nodes as came, or half as many if none came."""
    fewer = observation.scheduled_nodes if observation.scheduled_nodes else state.nodes // 2
    return replace(state, nodes=max(fewer, limits.min_nodes), waiting_since=None)


# The first rule that applies wins. While a job is terminating, only a stop is decided.
RULES: tuple[Rule, ...] = (
    Rule("stop", "stop-requested", _stop_requested, _unchanged),
    Rule("stop", "budget", _over_budget, _unchanged),
    Rule("stop", "deadline", _past_deadline, _unchanged),
    Rule("wait", "terminating", _phase_is("terminating"), _unchanged),
    Rule("fail", "stuck", _is_stuck, _unchanged),
    Rule("fail", "never-started", _never_starts_again, _unchanged),
    Rule("replace", "never-started", _never_starts, _count_crash),
    Rule("replace", "fallback", _spot_unstable, _move_to("on-demand")),
    Rule("submit", "", _phase_is("none"), _start_waiting),
    Rule("replace", "shrink", _enough_nodes, _shrink),
    Rule("replace", "fallback", _spot_unavailable, _move_to("on-demand")),
    Rule("replace", "shrink", _too_few_nodes, _shrink),
    Rule("replace", "return-to-spot", _may_return_to_spot, _move_to("spot")),
)
