"""How long a gang has to save: what its nodes leave, what its pods leave, and what it takes."""

from __future__ import annotations

from typing import Any

import pytest

from components.errors import ConfigError
from components.train.config import LimitsConfig
from pipeline.placement import PlacementConfig, ending_seconds, pod_grace, stop_seconds


@pytest.mark.parametrize(
    ("cloud", "pool", "grace", "stop"),
    [("gke", "spot", 15, 9), ("aks", "spot", 25, 19), ("eks", "spot", 110, 104), ("gke", "on-demand", 630, 600)],
)
def test_ranks_end_before_their_node_does(cloud: str, pool: Any, grace: int, stop: float) -> None:
    limits, placement = LimitsConfig(), PlacementConfig.parse({"cloud": cloud})
    assert pod_grace(placement, pool) == grace
    assert stop_seconds(limits, placement, pool) == stop
    assert ending_seconds(limits, placement, pool) == stop + 6 <= grace


def test_a_rank_takes_no_longer_than_its_setting_whatever_its_pod_may_take() -> None:
    limits = LimitsConfig.parse({"stop_grace_seconds": 3})
    placement = PlacementConfig.parse({"cloud": "eks"})
    assert [stop_seconds(limits, placement, pool) for pool in ("spot", "on-demand")] == [3, 3]
    assert ending_seconds(limits, placement, "spot") == 9


def test_a_spot_node_that_stays_longer_than_its_pod_may_helps_nobody() -> None:
    placement = PlacementConfig.parse({"cloud": "eks", "grace_seconds": 110, "pod_grace_seconds": 30})
    assert [pod_grace(placement, pool) for pool in ("spot", "on-demand")] == [30, 30]


def test_a_second_is_enough_to_save_and_less_is_not() -> None:
    placement = PlacementConfig.parse({"cloud": "gke"})
    assert stop_seconds(LimitsConfig.parse({"crash_grace_seconds": 13}), placement, "spot") == 1
    with pytest.raises(ConfigError, match=r"15 s .* 0\.5 s .*crash_grace_seconds \(13\.5\).*placement\.grace_seconds"):
        stop_seconds(LimitsConfig.parse({"crash_grace_seconds": 13.5}), placement, "spot")
    short = PlacementConfig.parse({"cloud": "gke", "pod_grace_seconds": 6})
    with pytest.raises(ConfigError, match=r"6 s .* 0 s .*placement\.pod_grace_seconds"):
        stop_seconds(LimitsConfig(), short, "on-demand")
