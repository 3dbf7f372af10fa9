"""Settings of how training is started and watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from components.settings import Settings


class RestartsConfig(Settings):
    """How often training is started again before it is given up."""

    max_preemptions: int = Field(
        1000, ge=0, le=1_000_000, description="restarts after a preemption with the state saved (exit 75)"
    )
    max_crashes: int = Field(
        3, ge=0, le=1_000_000, description="restarts after any other failure that a restart may fix"
    )
    max_without_progress: int = Field(
        10, ge=1, le=1_000_000, description="restarts in a row without a newer checkpoint"
    )


class FallbackConfig(Settings):
    """When to move from spot nodes to on-demand nodes, and back."""

    wait_minutes: float | None = Field(
        30.0,
        gt=0,
        le=525_600,
        description="minutes to wait for spot nodes before on-demand ones are requested; null: for ever",
    )
    preemptions: int | None = Field(
        20, ge=1, le=1_000_000, description="preemptions on spot nodes until on-demand ones are requested; null: never"
    )
    return_to_spot_hours: float | None = Field(
        None, gt=0, le=8760, description="hours on on-demand nodes until spot ones are tried again; null: never"
    )


class SpotDrillConfig(Settings):
    """A spot notice sent on purpose, to show that nothing is lost; only on this machine."""

    step: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="send one rank a spot notice (SIGTERM) once this optimizer step is reached; null: never",
    )
    rank: int = Field(0, ge=0, le=1_048_576, description="the rank that gets the notice")


class LaunchConfig(Settings):
    """What the launcher does when training stops before its last step; nothing here changes what is computed."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "max_preemptions": "restarts.max_preemptions",
        "max_crashes": "restarts.max_crashes",
        "max_fruitless": "restarts.max_without_progress",
        "fallback_wait_minutes": "fallback.wait_minutes",
        "fallback_preemptions": "fallback.preemptions",
        "return_to_spot_hours": "fallback.return_to_spot_hours",
        "spot_drill_step": "spot_drill.step",
        "spot_drill_rank": "spot_drill.rank",
    }

    where: Literal["local", "trainjob"] = Field(
        "local", description="train in processes of this machine, or as a TrainJob on the cluster"
    )
    deadline_hours: float | None = Field(
        None,
        gt=0,
        le=87_600,
        description="hours from the first start until training is stopped for good; null: no limit",
    )
    budget_usd: float | None = Field(
        None, gt=0, le=1e9, description="$ at which training saves, stops and is evaluated as it is; null: no limit"
    )
    usd_per_hour: float | None = Field(
        None, ge=0, le=1e6, description="$ per node and hour; null: from the price list, 0 on this machine"
    )
    shrink_wait_minutes: float = Field(
        30.0,
        gt=0,
        le=525_600,
        description="minutes to wait for all nodes before fewer (placement.min_nodes) are requested",
    )
    stuck_minutes: float = Field(
        10.0,
        gt=0,
        le=525_600,
        description="minutes that a container may fail to start, for example if its image is missing",
    )
    unstarted_minutes: float = Field(
        10.0,
        gt=0,
        le=525_600,
        description="minutes that a job with quota may have no pods before it is submitted again; counts as a crash",
    )
    poll_seconds: float = Field(10.0, gt=0, le=60, description="seconds between two checks of the training's progress")
    api_away_minutes: float = Field(
        30.0, gt=0, le=525_600, description="minutes that the cluster's API may be away before the launcher gives up"
    )
    stop_seconds: float = Field(
        20.0,
        gt=0,
        le=86_400,
        description="seconds that the launcher waits for the training to save once it is asked to stop itself; its "
        "books and report must fit into the rest of its pod's grace period, 30 seconds on Kubeflow",
    )
    restarts: RestartsConfig = RestartsConfig()
    fallback: FallbackConfig = FallbackConfig()
    spot_drill: SpotDrillConfig = SpotDrillConfig()
