"""Settings of how training is started and watched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.settings import Settings


class LaunchConfig(Settings):
    """What the launcher does when training stops before its last step; nothing here changes what is computed."""

    where: Literal["local", "trainjob"] = Field(
        "local", description="train in processes of this machine, or as a TrainJob on the cluster"
    )
    max_preemptions: int = Field(1000, ge=0, description="restarts after a preemption with the state saved (exit 75)")
    max_crashes: int = Field(3, ge=0, description="restarts after anything else that a restart may mend")
    max_fruitless: int = Field(10, ge=1, description="restarts in a row without a newer checkpoint")
    deadline_hours: float | None = Field(
        None, gt=0, description="hours from the first start until training is stopped for good; null: no limit"
    )
    budget_usd: float | None = Field(
        None, gt=0, description="$ at which training saves, stops and is evaluated as it is; null: no limit"
    )
    usd_per_hour: float | None = Field(
        None, ge=0, description="$ per machine and hour; null: by the price list, 0 on this machine"
    )

    fallback_wait_minutes: float | None = Field(
        30.0, gt=0, description="minutes to wait for spot machines before on-demand ones are asked for; null: for ever"
    )
    fallback_preemptions: int | None = Field(
        20, ge=1, description="preemptions on spot machines until on-demand ones are asked for; null: never"
    )
    return_to_spot_hours: float | None = Field(
        None, gt=0, description="hours on on-demand machines until spot ones are tried again; null: never"
    )
    shrink_wait_minutes: float = Field(
        30.0, gt=0, description="minutes to wait for all machines before fewer (placement.min_nodes) are asked for"
    )
    stuck_minutes: float = Field(
        10.0, gt=0, description="minutes that a container may fail to start, such as for want of its image or a secret"
    )
    poll_seconds: float = Field(10.0, gt=0, le=60, description="seconds between two looks at what training did")
    api_away_minutes: float = Field(
        30.0, gt=0, description="minutes that the cluster's API may be away before the launcher gives up"
    )

    spot_drill_step: int | None = Field(
        None, ge=1, description="send one rank a spot notice (SIGTERM) once this optimizer step is reached; null: never"
    )
    spot_drill_rank: int = Field(0, ge=0, description="the rank that gets the notice")
