"""The two verbs that speak of money: ``darkroom plan`` before a run, ``darkroom cost`` during and after it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from components.accounting.bill import Planned, bill
from components.accounting.ledger import LEDGER, read_ledger
from components.errors import ConfigError, NotFound, Preempted
from components.settings import override
from components.storage.base import Storage
from components.storage.open import open_storage
from pipeline.config import RunConfig
from pipeline.cost.history import Known, known, model_of
from pipeline.cost.plan import PLAN, Assumptions, Plan
from pipeline.cost.planning import make_plan
from pipeline.cost.prices import PriceList, read_prices
from pipeline.cost.tables import bill_table, plan_table, show


def plan_run(
    settings: RunConfig, prices: PriceList, workdir: Storage | None, images: int | None, told: Assumptions
) -> Plan:
    """Return the plan of a run, with what earlier runs in a workdir were seen to do.

    Raises:
        ConfigError: Where the price list lacks ``placement.instance``.
    """
    seen = known(settings, workdir) if workdir is not None else Known()
    return make_plan(settings, prices, model_of(settings), seen.speed, seen.images if images is None else images, told)


def store_plan(settings: RunConfig, workdir: Storage) -> None:
    """Keep a run's plan; once training has begun, what was planned before is what was planned.

    Raises:
        ConfigError: Where ``placement.prices`` names no price list.
    """
    prices = read_prices(settings.placement.prices)
    run = workdir.child(f"runs/{settings.run}")
    if run.exists(PLAN) and run.exists(LEDGER):
        return
    with contextlib.suppress(ConfigError):  # a run may go on machines that no price list knows
        run.write_json(PLAN, plan_run(settings, prices, workdir, None, Assumptions()).to_json())


def show_plan(
    settings: RunConfig,
    workdir: str,
    images: int | None,
    assumed: Sequence[str],
    as_json: bool,
    console: Console,
) -> None:
    """Print what a run is going to take; nothing is started and nothing written.

    Args:
        settings: The run.
        workdir: Place whose earlier runs tell how fast training is; empty for none.
        images: Images in the dataset; None where that is not known.
        assumed: ``name=value`` each, of `Assumptions`.
        as_json: Print the plan as JSON instead of a table.
        console: Where to print.

    Raises:
        ConfigError: For a wrong assumption or price list, and for a machine that the list does not know.
    """
    try:
        told = Assumptions.parse(override({}, assumed))
    except ConfigError as error:
        raise ConfigError(str(error).replace("--set", "--assume")) from None
    prices = read_prices(settings.placement.prices)
    plan = plan_run(settings, prices, open_storage(workdir) if workdir else None, images, told)
    if as_json:
        _print_json(console, plan.to_json())
    else:
        show(console, plan_table(plan))


def show_cost(run: str, workdir: str, as_json: bool, console: Console) -> None:
    """Print what a run has cost until now.

    Args:
        run: Its name, the folder below ``runs/``, or the beginning of it where that is enough.
        workdir: Place that holds it.
        as_json: Print the bill as JSON instead of tables.
        console: Where to print.

    Raises:
        ConfigError: Where there is no such run, or several.
        DataError: Where its ledger cannot be read.
    """
    storage = open_storage(workdir)
    name = _find(run, storage)
    folder = storage.child(f"runs/{name}")
    config = _read(folder, "config.json") or {}
    budget = (config.get("launch") or {}).get("budget_usd")
    images = sum(int(line.get("samples") or 0) for line in _lines(folder, "metrics.jsonl"))
    told = bill(read_ledger(folder), images, _planned(folder), budget)
    if as_json:
        _print_json(console, {"run": name, **told})
    else:
        show(console, bill_table(name, told, _preemptions(folder), _running(folder)))


def _find(run: str, storage: Storage) -> str:
    folder = storage.child("runs")
    if run and folder.exists(f"{run}/config.json"):
        return run
    names = sorted({entry.key.split("/")[0] for entry in folder.list() if entry.key.endswith("/config.json")})
    found = [name for name in names if run and name.startswith(run)]
    if len(found) == 1:
        return found[0]
    what = f"{run!r} fits several runs: {', '.join(found)}" if found else f"no run {run!r} in {storage.url}"
    known = "" if found else f"; there are {', '.join(names[-10:])}" if names else "; there are none"
    raise ConfigError(f"{what}{known}")


def _planned(folder: Storage) -> Planned | None:
    values = _read(folder, PLAN)
    try:
        return None if values is None else Planned.model_validate(values)
    except ValidationError:
        return None  # of a later version; the bill stands without it


def _read(folder: Storage, key: str) -> Any:
    try:
        return folder.read_json(key)
    except NotFound:
        return None


def _lines(folder: Storage, key: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a file that may be missing, without a line that was torn when its writer was killed."""
    for line in folder.read(key).split(b"\n") if folder.exists(key) else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _running(folder: Storage) -> int | None:
    """Return the number of the attempt that runs now; None where none does."""
    events = list(_lines(folder, "events.jsonl"))
    began, ended = (
        {event.get("attempt") for event in events if event.get("event") == name}
        for name in ("attempt-started", "attempt-ended")
    )
    return max((number for number in began - ended if isinstance(number, int)), default=None)


def _preemptions(folder: Storage) -> int:
    ended = (event for event in _lines(folder, "events.jsonl") if event.get("event") == "attempt-ended")
    return sum(event.get("exit_code") == Preempted.exit_code for event in ended)


def _print_json(console: Console, value: Any) -> None:
    console.print(json.dumps(value, indent=1, allow_nan=False), markup=False, soft_wrap=True)
