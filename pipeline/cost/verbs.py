"""The two verbs about money: ``darkroom plan`` before a run, ``darkroom cost`` during and after it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from components.accounting.bill import bill
from components.accounting.ledger import read_ledger
from components.errors import ConfigError, NotFound, Preempted
from components.settings import override
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.command_line import print_json
from pipeline.config import RunConfig
from pipeline.cost.plan import Assumptions
from pipeline.cost.prices import read_prices
from pipeline.cost.stored_plan import plan_run, read_planned
from pipeline.cost.tables import bill_table, plan_table, show

_RECENT = 10  # runs to list in a message


def show_plan(
    settings: RunConfig,
    workdir: str,
    images: int | None,
    assumptions: Sequence[str],
    as_json: bool,
    console: Console,
) -> None:
    """Print the plan of a run; starts nothing and writes nothing.

    Args:
        settings: The run.
        workdir: Storage with earlier runs, whose speed the plan uses; empty for none.
        images: Images in the dataset; None if that is not known.
        assumptions: Values of `Assumptions`, each as ``name=value``.
        as_json: Print JSON instead of a table.
        console: Where to print a table.

    Raises:
        ConfigError: If an assumption or the price list is wrong, or the machine type is not in the list.
    """
    try:
        values = Assumptions.parse(override({}, assumptions))
    except ConfigError as error:
        text = str(error).replace("--set", "--assume")
        raise ConfigError(
            text.replace("section.key=value, such as train.steps=200", "name=value, such as mfu=0.4")
        ) from None
    prices = read_prices(settings.placement.prices)
    plan = plan_run(settings, prices, open_storage(workdir) if workdir else None, images, values)
    if as_json:
        print_json(plan.to_json())
    else:
        show(console, plan_table(plan))


def show_cost(run: str, workdir: str, as_json: bool, console: Console) -> None:
    """Print the cost of a run until now.

    Args:
        run: Name of the run (its folder below ``runs/``), or the beginning of it if that fits only one run.
        workdir: Storage that holds the run.
        as_json: Print JSON instead of tables.
        console: Where to print tables.

    Raises:
        ConfigError: If there is no such run, or several.
        DataError: If its ledger cannot be read.
    """
    storage = open_storage(workdir)
    name = _run_name(run, storage)
    folder = storage.child(f"runs/{name}")
    images = sum(int(line.get("samples") or 0) for line in _lines(folder, "metrics.jsonl"))
    costs = bill(read_ledger(folder), images, read_planned(folder), _budget(folder))
    if as_json:
        print_json({"run": name, **costs})
    else:
        show(console, bill_table(name, costs, _preemptions(folder), _running(folder)))


def _run_name(beginning: str, storage: Storage) -> str:
    """Return the name of the run that has this name, or else the only one that begins with it."""
    folder = storage.child("runs")
    if beginning and folder.exists(f"{beginning}/config.json"):
        return beginning
    names = sorted({entry.key.split("/")[0] for entry in folder.list() if entry.key.endswith("/config.json")})
    matches = [name for name in names if beginning and name.startswith(beginning)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{beginning!r} fits several runs: {', '.join(matches)}; give more of the name")
    runs = f"its runs are {', '.join(names[-_RECENT:])}" if names else "it has no runs"
    raise ConfigError(f"no run {beginning!r} in {storage.url}; {runs}")


def _budget(folder: Storage) -> float | None:
    try:
        config: dict[str, Any] = folder.read_json("config.json", must_have_checksum=True)
    except NotFound:
        return None
    return (config.get("launch") or {}).get("budget_usd")


def _lines(folder: Storage, key: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a file that may be missing, without a line that was cut off when its writer was killed."""
    for line in folder.read(key).split(b"\n") if folder.exists(key) else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _running(folder: Storage) -> int | None:
    """Return the number of the attempt that is running; None if there is none."""
    events = list(_lines(folder, "events.jsonl"))
    started, ended = (
        {event.get("attempt") for event in events if event.get("event") == name}
        for name in ("attempt-started", "attempt-ended")
    )
    return max((number for number in started - ended if isinstance(number, int)), default=None)


def _preemptions(folder: Storage) -> int:
    ended = (event for event in _lines(folder, "events.jsonl") if event.get("event") == "attempt-ended")
    return sum(event.get("exit_code") == Preempted.exit_code for event in ended)
