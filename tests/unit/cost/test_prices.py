"""The price list: whole, dated, of machines whose GPUs are known; a wrong one is rejected with what to do."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import ConfigError
from components.model.gpu_peaks import peak_flops
from pipeline.cost.prices import PriceList, prices_by_pool, read_prices

MINE: dict[str, Any] = {
    "sources": {"contract": {"url": "https://example.com/offer", "date": "2026-11-01"}},
    "storage": {"usd_per_gb_month": 0.01, "source": "contract"},
    "instances": {
        "big": {"cloud": "ours", "gpu": "NVIDIA H200", "gpus": 4, "region": "cellar",
                "on_demand": {"usd": 9.5, "source": "contract"}},
    },
}  # fmt: skip


def write(folder: Path, values: Any) -> str:
    path = folder / "prices.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_the_list_that_comes_with_darkroom() -> None:
    prices = read_prices()
    assert {instance.cloud for instance in prices.instances.values()} == {"aws", "gcp", "azure"}
    for name, instance in prices.instances.items():
        assert instance.gpus > 0, name
        assert peak_flops(instance.gpu, "bf16", tf32=False), f"{name}: {instance.gpu}"
        assert instance.on_demand is not None, name
        if instance.spot is not None:
            assert 0.1 < instance.spot.usd / instance.on_demand.usd < 0.7, name
    assert all(source.url.startswith("https://") for source in prices.sources.values())
    assert all(source.date <= datetime.date(2026, 11, 20) for source in prices.sources.values())


def test_a_price_is_of_a_node_and_an_hour() -> None:
    prices = read_prices()
    assert prices.usd_per_hour("p5.48xlarge", "on-demand") == 55.04
    assert prices.usd_per_hour("p5.48xlarge", "spot") < 55.04


def test_prices_by_pool_are_those_that_are_known() -> None:
    prices = read_prices()
    assert prices.by_pool("g6e.48xlarge") == {"spot": 12.22, "on-demand": 30.13118}
    assert prices.by_pool("Standard_ND96asr_v4") == {"on-demand": 27.197}


def test_machines_of_any_type_have_no_price() -> None:
    assert prices_by_pool(None, None) == prices_by_pool(None, "p99.xlarge") == {}
    assert prices_by_pool(None, "g6e.48xlarge")["spot"] == 12.22


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, MINE))
    assert prices.usd_per_hour("big", "on-demand") == 9.5
    assert prices.instance("big").gpus == 4


def test_a_machine_that_is_not_on_the_list_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'p4d\.24xlage'.* p4d\.24xlarge\?"):
        read_prices().usd_per_hour("p4d.24xlage", "spot")
    with pytest.raises(ConfigError, match=r"'xyzzy'.* big.*placement\.prices"):
        PriceList.parse(MINE).instance("xyzzy")


def test_a_price_that_is_not_known_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"spot.* big.*instances\.big\.spot.*launch\.usd_per_hour"):
        PriceList.parse(MINE).usd_per_hour("big", "spot")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"instances": {"big": {**MINE["instances"]["big"], "gpu_count": 3}}}, "instances.big.gpu_count: "),
        (
            {"instances": {"big": {**MINE["instances"]["big"], "spot": {"usd": -1, "source": "contract"}}}},
            "instances.big.spot.usd: -1 ",
        ),
        ({"instances": {"big": {**MINE["instances"]["big"], "spot": {"usd": 1, "source": "hearsay"}}}}, "'hearsay'"),
        ({"sources": {"contract": {"url": "x", "date": "yesterday"}}}, "sources.contract.date"),
        ({"storage": {"usd_per_gb_month": 0.01, "source": "rumour"}}, "'rumour'"),
        ({"storage": None}, "storage"),
    ],
)
def test_a_wrong_list_is_refused(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**MINE, **change})
    with pytest.raises(ConfigError) as rejection:
        read_prices(path)
    assert part in str(rejection.value)
    assert path in str(rejection.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        read_prices(str(tmp_path / "gone.yaml"))
