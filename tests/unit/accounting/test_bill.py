"""The sums of a ledger, and how the report shows them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.accounting.bill import Expected, Planned, bill, costs_money
from components.accounting.bill_text import comparison, cost_line, pool_rows
from components.accounting.ledger import STATES, append_ledger, ledger_lines
from components.html.formatting import usd
from components.progress import Progress
from components.report.account import account
from components.report.config import ReportConfig
from components.report.records import Records, StepMetrics
from components.report.reporting import report
from components.report.summary import markdown, metrics
from components.storage.open import open_storage

SPOT = ledger_lines(
    0, {"pending": 600, "pulling": 60, "loading": 240, "useful": 2700, "lost": 600}, 2, "spot", "p4d", 9.0
)
DEMAND = ledger_lines(1, {"loading": 300, "useful": 3000, "saving": 300}, 2, "on-demand", "p4d", 20.0)
PLAN = Planned(expected=Expected(hours=1.5, usd=30.0, goodput=0.9, interruptions=0.4), pool="spot")


def test_a_bill_by_pool_state_and_attempt() -> None:
    result = bill(SPOT + DEMAND, images=50_000, planned=PLAN, budget_usd=100.0)
    assert result["usd"] == pytest.approx(18 + 40)
    assert result["hours"] == pytest.approx(7800 / 3600)
    assert result["useful_hours"] == pytest.approx(5700 / 3600)
    assert result["usd_per_useful_hour"] == pytest.approx(58 / (5700 / 3600))
    assert result["usd_per_1000_images"] == pytest.approx(58 / 50)
    assert result["goodput"] == pytest.approx(5700 / 7800)
    assert {pool: part["usd"] for pool, part in result["pools"].items()} == pytest.approx({"spot": 18, "on-demand": 40})
    assert result["states"]["pending"] == {"seconds": 600, "node_seconds": 1200, "usd": 0}
    assert result["states"]["lost"]["usd"] == pytest.approx(3.0)
    first, second = result["attempts"]
    assert first == {
        "attempt": 0, "pool": "spot", "instance": "p4d", "nodes": 2, "usd_per_hour": 9.0,
        "seconds": 4200.0, "node_seconds": 8400.0, "usd": pytest.approx(18), "goodput": pytest.approx(2700 / 4200),
    }  # fmt: skip
    assert (second["attempt"], second["pool"], second["usd_per_hour"]) == (1, "on-demand", 20.0)
    assert second["goodput"] == pytest.approx(3000 / 3600)
    assert result["budget"] == {"usd": 100.0, "left": pytest.approx(42.0)}
    assert result["planned"]["hours"] == 1.5


def test_nothing_has_been_spent_on_nothing() -> None:
    result = bill([], images=0)
    assert result["usd"] == 0
    assert [result[name] for name in ("goodput", "usd_per_useful_hour", "usd_per_1000_images")] == [None] * 3
    assert not costs_money(result)


def test_a_run_on_this_machine_costs_nothing_worth_a_table() -> None:
    assert not costs_money(bill(ledger_lines(0, {"useful": 60}), images=10))
    assert costs_money(bill(ledger_lines(0, {"useful": 60}, pool="spot"), images=10))
    assert costs_money(bill(ledger_lines(0, {"useful": 60}, usd_per_hour=1.0), images=10))


seconds = st.dictionaries(st.sampled_from(STATES), st.floats(0, 1e5))
pools = st.sampled_from(["spot", "on-demand", "local"])
attempts = st.lists(st.tuples(seconds, st.integers(1, 64), pools, st.floats(0, 100)), max_size=8)


@given(attempts)
def test_every_way_to_split_a_bill_comes_to_the_same(lives: list[tuple[dict[str, float], int, Any, float]]) -> None:
    lines = [line for number, (spans, nodes, pool, price) in enumerate(lives)
             for line in ledger_lines(number, spans, nodes, pool, None, price)]  # fmt: skip
    result = bill(lines, images=1)
    for parts in (result["states"].values(), result["pools"].values(), result["attempts"]):
        for name in ("seconds", "node_seconds", "usd"):
            assert sum(part[name] for part in parts) == pytest.approx(result[name])
    wall = sum(sum(spans.values()) for spans, *_ in lives)
    assert result["seconds"] == pytest.approx(wall, abs=0.001 * len(lives) + 1e-6 * wall)


def records(**fields: Any) -> Records:
    steps = tuple(StepMetrics(step=step, samples=5000, seconds=60.0) for step in range(1, 11))
    return Records(run="first", metrics=steps, ledger=tuple(SPOT + DEMAND), **fields)


def test_the_report_holds_the_plan_against_the_ledger() -> None:
    numbers = account(records(plan=PLAN, config={"launch": {"budget_usd": 50}}), "SUCCEEDED", {})
    assert numbers["cost"]["usd"] == pytest.approx(58)
    assert metrics(numbers)["usd_per_1000_images"] == pytest.approx(58 / 50)
    rows = {row.label: (row.planned, row.actual) for row in comparison(numbers["cost"], preemptions=1)}
    assert rows["Cost"] == ("$30.00", "$58.00")
    assert [part.replace("\N{NO-BREAK SPACE}", " ") for part in rows["Time"]] == ["1 h 30 min", "2 h 10 min"]
    assert rows["Preemptions"] == ("0.4", "1")
    assert "Per 1,000 images" not in rows, "it was not planned"
    assert [row.pool for row in pool_rows(numbers["cost"])] == ["spot", "on-demand"]
    assert all(part in cost_line(numbers["cost"]) for part in ("$58.00", "$50.00", "$8.00"))
    text = markdown(numbers)
    assert "| spot | 1.17 | 2.33 | $18.00 |" in text
    assert "| Cost | $30.00 | $58.00 |" in text


def test_the_page_has_the_bill() -> None:
    workdir = open_storage("memory://bill-page")
    run = workdir.child("runs/first")
    append_ledger(run, SPOT + DEMAND)
    run.write_json("plan.json", {"pool": "spot", "expected": {"hours": 1.5, "usd": 30.0}, "later": "more"})
    result = report(ReportConfig(), "first", "SUCCEEDED", workdir, Progress(stream=io.StringIO()))
    page = workdir.read(result["report"]).decode()
    for part in ("Training cost", "on-demand", "$58.00", "Compared with the plan", "$30.00", "state pending"):
        assert part in page
    assert result["metrics"]["usd"] == pytest.approx(58)

    run.delete("plan.json")
    run.write_lines("ledger.jsonl", [line.model_dump() for line in ledger_lines(0, {"useful": 60})])
    result = report(ReportConfig(), "first", "SUCCEEDED", workdir, Progress(stream=io.StringIO()))
    page = workdir.read(result["report"]).decode()
    assert "Training cost" not in page
    assert "plan.json" not in page, "that nothing was planned is no fault"


def test_a_run_that_cost_nothing_says_nothing_of_money() -> None:
    numbers = account(Records(run="first", ledger=tuple(ledger_lines(0, {"useful": 60}))), "SUCCEEDED", {})
    assert numbers["usd"] is None
    assert "usd" not in metrics(numbers)
    assert "$" not in markdown(numbers)


def test_a_plan_of_a_run_that_costs_nothing_is_of_its_time() -> None:
    free = Planned(expected=Expected(hours=0.1, usd=0.0, goodput=0.8))
    result = bill(ledger_lines(0, {"useful": 60}), images=10, planned=free)
    assert [row.label for row in comparison(result, preemptions=0)] == ["Time", "Goodput"]


def test_odd_budgets_are_none() -> None:
    for odd in ("5", True, None, [1]):
        numbers = account(records(config={"launch": {"budget_usd": odd}}), "SUCCEEDED", {})
        assert numbers["cost"]["budget"] is None


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (None, "–"),
        (0, "$0.00"),
        (7e-05, "< $0.0001"),
        (0.00899, "$0.009"),
        (0.5, "$0.50"),
        (1, "$1.00"),
        (33874.4, "$33,874"),
        (-8.25, "−$8.25"),
    ],
)
def test_dollars(amount: float | None, shown: str) -> None:
    assert usd(amount) == shown
