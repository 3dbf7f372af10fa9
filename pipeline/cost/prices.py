"""What machines cost: the list that comes with Darkroom, ``prices.yaml``, or one of your own."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from components.accounting.ledger import Pool
from components.errors import ConfigError
from components.settings import Settings, read_values


class PriceSource(Settings):
    """Where prices were read, and when."""

    url: str = Field(min_length=1, max_length=500, description="address of the price list")
    date: datetime.date = Field(description="day on which it was read, YYYY-MM-DD")


class Price(Settings):
    """One price."""

    usd: float = Field(ge=0, le=10_000, description="US dollars per node and hour")
    source: str = Field(description="name of one of the list's sources")


class Instance(Settings):
    """A type of machine."""

    cloud: str = Field(min_length=1, max_length=40, description="whose it is, such as aws")
    gpu: str = Field("", max_length=100, description="name of its GPUs, as their driver gives it")
    gpus: int = Field(ge=0, le=64, description="GPUs per node")
    region: str = Field(min_length=1, max_length=60, description="where the prices hold")
    on_demand: Price | None = Field(None, description="price of a node that stays; null: not known")
    spot: Price | None = Field(None, description="price of a node that may be taken away; null: not known")

    def price(self, pool: Pool) -> Price | None:
        """Return the price in a pool; None where it is not known."""
        return self.spot if pool == "spot" else self.on_demand


class StoragePrice(Settings):
    """What the object store costs."""

    usd_per_gb_month: float = Field(ge=0, le=100, description="US dollars per GB (10⁹ bytes) and month")
    source: str = Field(description="name of one of the list's sources")


class PriceList(Settings):
    """Prices of machines, each with its source."""

    sources: dict[str, PriceSource] = Field(description="where prices were read, by a name of your own")
    storage: StoragePrice = Field(description="what the object store costs")
    instances: dict[str, Instance] = Field(description="machines by their type")

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        prices = [("storage", self.storage.source)]
        for name, instance in self.instances.items():
            known = (instance.on_demand, instance.spot)
            prices += [(name, price.source) for price in known if price is not None]
        for name, source in prices:
            if source not in self.sources:
                raise ValueError(f"{name}: no source {source!r}; expected one of {', '.join(self.sources)}")
        return self

    def instance(self, name: str) -> Instance:
        """Return a type of machine.

        Raises:
            ConfigError: Where the list does not know it, with the nearest that it knows.
        """
        found = self.instances.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self.instances, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self.instances)}"
            raise ConfigError(f"instance {name!r} is not on the price list; {hint} Or add it (placement.prices)")
        return found

    def by_pool(self, name: str) -> dict[Pool, float]:
        """Return what a node costs in each pool, in US dollars per hour, as far as it is known.

        Raises:
            ConfigError: Where the list does not know the machine.
        """
        known = self.instance(name)
        prices: list[tuple[Pool, Price | None]] = [("spot", known.spot), ("on-demand", known.on_demand)]
        return {pool: price.usd for pool, price in prices if price is not None}

    def usd_per_hour(self, name: str, pool: Pool) -> float:
        """Return what a node costs.

        Raises:
            ConfigError: Where the list does not know the machine, or not its price in this pool.
        """
        price = self.instance(name).price(pool)
        if price is None:
            field = pool.replace("-", "_")
            raise ConfigError(
                f"the price list knows no {pool} price of {name}; add instances.{name}.{field} to a list of your own "
                "(placement.prices), or set launch.usd_per_hour"
            )
        return price.usd


def read_prices(place: str | None = None) -> PriceList:
    """Return the list in a YAML file; None: the one that comes with Darkroom.

    Raises:
        ConfigError: Where the file cannot be read or is no price list, with all that is wrong.
    """
    try:
        return PriceList.parse(read_values(Path(place)) if place is not None else _own())
    except ConfigError as error:
        raise ConfigError(f"price list {place or 'of Darkroom'}: {error}") from None


def _own() -> Mapping[str, object]:
    values: Mapping[str, object] = yaml.safe_load((resources.files("pipeline.cost") / "prices.yaml").read_text("utf-8"))
    return values


def known_prices(place: str | None, instance: str | None) -> dict[Pool, float]:
    """Return what a node costs in each pool, in US dollars per hour; empty where no list knows the machine.

    Args:
        place: A price list's file; None: the one that comes with Darkroom.
        instance: Type of the machine; None: any.

    Raises:
        ConfigError: Where the file cannot be read or is no price list.
    """
    prices = read_prices(place)
    return prices.by_pool(instance) if instance is not None and instance in prices.instances else {}
