"""The attempts of a training, as its events record them: when each ran, what ended it, what was lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from components.errors import EXIT_DONE, Preempted
from components.report.records import RunEvent


@dataclass
class Attempt:
    """One start of the trainer; times in seconds since 1970.

    Attributes:
        number: Counted from 1.
        ranks: Processes that trained.
        started: When it was started.
        ended: When it ended, or the time of its last event.
        exit_code: None if no event says that it ended.
        first_step: Optimizer steps that were already done when it began.
        last_step: Optimizer steps that were done when it ended, also those that were lost.
        steps_lost: Steps that were done but not saved, so that they had to be done again.
        notices: When a rank got notice that its node goes away, and which rank.
        checkpoints: When a checkpoint was written, and after which step.
    """

    number: int
    ranks: int | None
    started: float
    ended: float
    exit_code: int | None = None
    first_step: int = 0
    last_step: int | None = None
    steps_lost: int = 0
    notices: list[tuple[float, int | None]] = field(default_factory=list)
    checkpoints: list[tuple[float, int | None]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended - self.started

    @property
    def kept(self) -> int:
        """Optimizer steps that were done and not lost when it ended."""
        return max((self.last_step or 0) - self.steps_lost, 0)

    @property
    def preempted(self) -> bool:
        """Whether it saved its state because its node was taken away."""
        return self.exit_code == Preempted.exit_code

    @property
    def outcome(self) -> str:
        """What ended it, in words."""
        if self.exit_code is None:
            return "no end recorded"
        if self.exit_code == EXIT_DONE:
            return "finished"
        return "preempted" if self.preempted else f"failed (exit code {self.exit_code})"


def attempts(events: Iterable[RunEvent]) -> list[Attempt]:
    """Return the attempts in order; ``events`` are sorted by time, and those before the first attempt are skipped."""
    result: list[Attempt] = []
    for event in events:
        if event.event == "attempt-started":
            result.append(Attempt(len(result) + 1, event.ranks, event.time, event.time))
        elif result:
            _record(result[-1], event)
    return result


def _record(attempt: Attempt, event: RunEvent) -> None:
    attempt.ended = max(attempt.ended, event.time)
    match event.event:
        case "resumed" | "continued":
            attempt.first_step = event.step or 0
        case "spot-notice":
            attempt.notices.append((event.time, event.rank))
        case "checkpoint":
            attempt.checkpoints.append((event.time, event.step))
        case "attempt-ended":
            attempt.exit_code = event.exit_code
            attempt.steps_lost = event.steps_lost or 0
    if event.step is not None and event.event in ("checkpoint", "preempted", "finished", "attempt-ended"):
        attempt.last_step = event.step
