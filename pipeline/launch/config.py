"""Settings of how training is started and watched."""

from __future__ import annotations

from pydantic import Field

from components.settings import Settings


class LaunchConfig(Settings):
    """What the launcher does when training stops before its last step."""

    max_preemptions: int = Field(1000, ge=0, description="restarts after a preemption with the state saved (exit 75)")
    max_crashes: int = Field(3, ge=0, description="restarts after anything else that a restart may mend")
    spot_drill_step: int | None = Field(
        None, ge=1, description="send one rank a spot notice (SIGTERM) once this optimizer step is reached; null: never"
    )
    spot_drill_rank: int = Field(0, ge=0, description="the rank that gets the notice")
