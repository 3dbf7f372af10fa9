"""The errors with which a launch ends: what happened, and which setting to change."""

from __future__ import annotations

import re

from components.errors import ConfigError, DarkroomError, DataError
from components.storage.base import Storage
from pipeline.launch.books.accounting import committed_step
from pipeline.launch.config import LaunchConfig
from pipeline.launch.policy import LaunchState

_FATAL_ERRORS: dict[int, type[DarkroomError]] = {error.exit_code: error for error in (ConfigError, DataError)}
# What a rank or its agent prints of an error that Darkroom raised on purpose.
_REASON = re.compile(r"(?:rank \d+|error): (.*)")
# What libraries say by the way: DeepSpeed, torch, transformers, Python's warnings.
_NOISE = re.compile(
    r"\s*(\[\d{4}-\d\d-\d\d [\d:,]+\] \[(INFO|WARNING|DEBUG)\]|\[rank\d+\]:\[W|\[W\d+ |\[transformers\] |WARNING:"
    r"|\S+\.py:\d+: \w*Warning: |warnings\.warn\(|libibverbs: Warning|$)"
)


def trainer_error(exit_code: int, message: str) -> DarkroomError:
    """Return the error for a trainer's exit code: of the class that has this code, or else a plain `DarkroomError`."""
    return _FATAL_ERRORS.get(exit_code, DarkroomError)(reason(message))


def is_noise(line: str) -> bool:
    """Tell whether a line of a trainer's output is what a library says by the way."""
    return _NOISE.match(line) is not None


def reason(log: str) -> str:
    """Return why a trainer ended, from the end of its log: each reason that the ranks gave once, or else all but noise.

    Args:
        log: The last lines of its output that are no events.
    """
    lines = log.splitlines()
    given = [index for index, line in enumerate(lines) if _REASON.match(line)]
    if given:  # the ranks print their reason last; it may have several lines
        said = [_REASON.sub(r"\1", line) for line in lines[given[0] :] if not is_noise(line)]
        return "\n".join(dict.fromkeys(said))
    return "\n".join(line for line in lines if not is_noise(line)) or "(the log is empty)"


def restart_limit_error(state: LaunchState, exit_code: int, launch: LaunchConfig, log_tail: str) -> DarkroomError:
    """Return the error for a training that was restarted too often."""
    restarts = launch.restarts
    if state.without_progress > restarts.max_without_progress:
        return DarkroomError(
            f"training ended with exit code {exit_code}: {state.without_progress} attempts in a row without a "
            f"checkpoint newer than step {state.checkpoint_step}, and launch.restarts.max_without_progress is "
            f"{restarts.max_without_progress}. Save checkpoints more often (train.checkpoint.every), or find out what "
            "ends the training. "
            f"The end of its log:\n{reason(log_tail)}"
        )
    return DarkroomError(
        f"training ended with exit code {exit_code} after {state.preemptions} preemptions and {state.crashes} crashes; "
        f"launch.restarts.max_preemptions is {restarts.max_preemptions}, launch.restarts.max_crashes is "
        f"{restarts.max_crashes}. "
        f"The end of its log:\n{reason(log_tail)}"
    )


def step_when_stopped(run: Storage, reason: str, launch: LaunchConfig) -> int:
    """Return the step at which training was stopped before its end; the model of that step is evaluated.

    Raises:
        DarkroomError: If no checkpoint was saved, so that there is nothing to evaluate.
    """
    step = committed_step(run)
    if step == 0:
        limit = f"{launch.budget_usd} $" if reason == "budget" else f"{launch.deadline_hours} hours"
        setting = "budget_usd" if reason == "budget" else "deadline_hours"
        raise DarkroomError(
            f"training was stopped by its {reason} ({limit}) before it saved a checkpoint, so there is nothing to "
            f"evaluate; raise launch.{setting}, or save checkpoints more often (train.checkpoint.every)"
        )
    return step
