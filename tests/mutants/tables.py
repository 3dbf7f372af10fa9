"""What is kept by hand: which tests own a module, and which mutants no test needs to notice."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import yaml

_HERE = Path(__file__).parent


class Accepted(NamedTuple):
    """A mutant that may survive."""

    module: str
    reason: str


def read_owners(parts: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the tests that own each module, whose name contains one of the parts if there are any."""
    owners: dict[str, str] = yaml.safe_load((_HERE / "owners.yaml").read_text("utf-8"))
    chosen = [module for module in owners if not parts or any(part in module for part in parts)]
    return {module: tuple(owners[module].split()) for module in chosen}


def read_accepted() -> dict[str, Accepted]:
    """Return the mutants that may survive, by name."""
    lines = (_HERE / "accepted.txt").read_text("utf-8").splitlines()
    rows = [line.split(maxsplit=2) for line in lines if line and not line.startswith("#")]
    return {name: Accepted(module, reason) for name, module, reason in rows}
