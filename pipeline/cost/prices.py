"""Prices of machine types: the list that comes with Darkroom, ``prices.yaml``, or one of your own."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from components.accounting.ledger import Pool
from components.errors import ConfigError
from components.settings import Settings, parse_values, read_values


class PriceSource(Settings):
    """Where prices were read, and when."""

    url: str = Field(min_length=1, max_length=500, description="address of the price list")
    date: datetime.date = Field(strict=False, description="day on which it was read, YYYY-MM-DD")


class Price(Settings):
    """One price."""

    usd: float = Field(ge=0, le=10_000, description="US dollars per node and hour")
    source: str = Field(description="name of one of the list's sources")


class Instance(Settings):
    """The prices of one machine type."""

    cloud: str = Field(min_length=1, max_length=40, description="cloud that offers it, such as aws")
    gpu: str = Field("", max_length=100, description="name of its GPUs, as the driver reports it")
    gpus: int = Field(ge=0, le=64, description="GPUs per node")
    region: str = Field(min_length=1, max_length=60, description="region of the prices")
    on_demand: Price | None = Field(None, description="price of an on-demand node; null: not known")
    spot: Price | None = Field(None, description="price of a spot node, which may be taken away; null: not known")

    def price(self, pool: Pool) -> Price | None:
        """Return the price in a pool; None if it is not known."""
        return self.spot if pool == "spot" else self.on_demand


class StoragePrice(Settings):
    """The price of the object store."""

    usd_per_gb_month: float = Field(ge=0, le=100, description="US dollars per GB (10⁹ bytes) and month")
    source: str = Field(description="name of one of the list's sources")


class PriceList(Settings):
    """Prices of machine types, each with its source."""

    sources: dict[str, PriceSource] = Field(description="where prices were read, by names of your choice")
    storage: StoragePrice = Field(description="price of the object store")
    instances: dict[str, Instance] = Field(description="prices by machine type")

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        sources = [("storage", self.storage.source)]
        for name, instance in self.instances.items():
            sources += [(name, price.source) for price in (instance.on_demand, instance.spot) if price is not None]
        for name, source in sources:
            if source not in self.sources:
                raise ValueError(f"{name}: no source {source!r}; expected one of {', '.join(self.sources)}")
        return self

    def instance(self, name: str) -> Instance:
        """Return the prices of a machine type.

        Raises:
            ConfigError: If the list does not have it; the message names the nearest one.
        """
        instance = self.instances.get(name)
        if instance is None:
            near = difflib.get_close_matches(name, self.instances, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(self.instances)}."
            raise ConfigError(
                f"machine type {name!r} is not in the price list; {hint} "
                "Or add it to a price list of your own (placement.prices)"
            )
        return instance

    def by_pool(self, name: str) -> dict[Pool, float]:
        """Return the price of a node in each pool that has one, in US dollars per hour.

        Raises:
            ConfigError: If the list does not have the machine type.
        """
        instance = self.instance(name)
        prices: list[tuple[Pool, Price | None]] = [("spot", instance.spot), ("on-demand", instance.on_demand)]
        return {pool: price.usd for pool, price in prices if price is not None}

    def usd_per_hour(self, name: str, pool: Pool) -> float:
        """Return the price of a node in one pool.

        Raises:
            ConfigError: If the list does not have the machine type, or no price in this pool.
        """
        price = self.instance(name).price(pool)
        if price is None:
            field = pool.replace("-", "_")
            raise ConfigError(
                f"the price list has no {pool} price for {name}; add instances.{name}.{field} to a price list of your "
                "own (placement.prices), or set launch.usd_per_hour"
            )
        return price.usd


def read_prices(path: str | None = None) -> PriceList:
    """Return the price list in a YAML file, or the one that comes with Darkroom.

    Args:
        path: The file; None for Darkroom's own.

    Raises:
        ConfigError: If the file cannot be read or is not a price list; the message names all that is wrong.
    """
    try:
        return PriceList.parse(read_values(Path(path)) if path is not None else _default_list())
    except ConfigError as error:
        raise ConfigError(f"price list {path or 'of Darkroom'}: {error}") from None


def _default_list() -> Mapping[str, object]:
    return parse_values((resources.files("pipeline.cost") / "prices.yaml").read_text("utf-8"), "prices.yaml")


def prices_by_pool(path: str | None, instance: str | None) -> dict[Pool, float]:
    """Return the price of a node in each pool, in US dollars per hour; empty if the machine type is not in the list.

    Args:
        path: File with the price list; None for the one that comes with Darkroom.
        instance: The machine type; None for any.

    Raises:
        ConfigError: If the file cannot be read or is not a price list.
    """
    prices = read_prices(path)
    return prices.by_pool(instance) if instance is not None and instance in prices.instances else {}
