"""Every second of an attempt is in one state, whatever its events say, and every line of the ledger has its price."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.accounting.ledger import (
    STATES,
    LedgerLine,
    append_ledger,
    attempt_seconds,
    by_attempt,
    by_pool,
    by_state,
    goodput,
    ledger_lines,
    read_ledger,
    spent,
    total,
)
from components.errors import DamagedFile
from components.storage.checksums import with_checksum
from components.storage.open import open_storage


def event(time: float, name: str, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": name, **fields}


EVENTS = [
    event(101, "loading", ranks=2),
    event(110, "training", step=0),
    event(112, "validation", step=0, seconds=2.0),
    event(123, "checkpoint", step=10, stall_seconds=1.0, trained_seconds=10.0),
    event(126, "samples", step=10, seconds=3.0),
    event(137, "checkpoint", step=20, stall_seconds=1.0, trained_seconds=10.0),
]


def test_a_training_that_came_to_its_end() -> None:
    assert attempt_seconds(EVENTS, start=100, end=140, committed_step=20, crashed=False) == {
        "pending": 0,
        "pulling": 0,
        "loading": 10,
        "useful": 20,
        "saving": 2,
        "validating": 2,
        "sampling": 3,
        "lost": 0,
        "idle": 3,
    }


def test_a_crash_loses_what_no_checkpoint_holds_until_it_is_noticed() -> None:
    seconds = attempt_seconds(EVENTS, start=100, end=145, committed_step=10, crashed=True)
    assert seconds["useful"] == 10
    assert seconds["lost"] == 10 + 8, "the steps of the checkpoint that was not committed, and all after it"
    assert seconds["idle"] == 0


def test_a_crash_while_loading_loses_nothing() -> None:
    seconds = attempt_seconds([event(101, "loading")], start=100, end=130, committed_step=0, crashed=True)
    assert seconds == {**dict.fromkeys(STATES, 0.0), "loading": 30}


def test_loading_ends_with_the_first_step_that_begins() -> None:
    """A process that was started again within the attempt reports training once more."""
    seconds = attempt_seconds(
        [*EVENTS, event(138, "training", step=20)], start=100, end=140, committed_step=20, crashed=False
    )
    assert (seconds["loading"], seconds["useful"]) == (10, 20)


number = st.floats(0, 1e6)
events = st.one_of(
    st.builds(event, number, st.just("training"), step=st.integers(0, 9)),
    st.builds(event, number, st.just("checkpoint"), step=st.integers(0, 9), stall_seconds=number),
    st.builds(event, number, st.just("checkpoint"), step=st.integers(0, 9), trained_seconds=number),
    st.builds(event, number, st.sampled_from(["validation", "samples"]), seconds=st.none() | number),
    st.builds(event, number, st.just("resumed")),
)


@given(st.lists(events), number, number, st.integers(0, 9), st.booleans())
def test_states_add_up_to_the_wall_clock(
    reported: list[dict[str, Any]], start: float, length: float, committed_step: int, crashed: bool
) -> None:
    seconds = attempt_seconds(reported, start, start + length, committed_step, crashed)
    assert tuple(seconds) == STATES
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) == pytest.approx(length, abs=1e-3)


def test_a_ledger_is_read_back_as_it_was_written() -> None:
    run = open_storage("memory://ledger-round-trip")
    lines = ledger_lines(0, {"pending": 30, "useful": 60}, 2, "spot", "p4d.24xlarge", 12.5)
    append_ledger(run, lines[:4])
    append_ledger(run, lines[4:])
    assert read_ledger(run) == tuple(lines)


def test_no_ledger_is_an_empty_one() -> None:
    assert read_ledger(open_storage("memory://ledger-none")) == ()
    assert by_state([]) == {}
    assert goodput([]) is None


def test_a_line_from_before_there_were_prices_is_local_and_free() -> None:
    run = open_storage("memory://ledger-old")
    run.write_lines("ledger.jsonl", [with_checksum({"attempt": 0, "state": "useful", "seconds": 7.5, "nodes": 1})])
    (line,) = read_ledger(run)
    assert (line.pool, line.instance, line.usd_per_hour, line.usd) == ("local", None, 0, 0)


def test_a_torn_line_is_left_out_and_the_line_behind_it_is_not() -> None:
    run = open_storage("memory://ledger-torn")
    first, second = (ledger_lines(number, {"pending": 4, "useful": 2}, usd_per_hour=1.0) for number in (0, 1))
    append_ledger(run, first)
    run.append("ledger.jsonl", b'{"attempt": 7, "sta')
    assert read_ledger(run) == tuple(first)
    append_ledger(run, second)
    assert read_ledger(run) == tuple(first + second)


def test_lines_of_an_attempt_that_has_ended_are_missed() -> None:
    run = open_storage("memory://ledger-ended")
    append_ledger(run, ledger_lines(0, {"useful": 2}))
    run.append_lines("events.jsonl", [{"event": "attempt-ended", "attempt": 0}, {"event": "step", "attempt": 1}])
    assert len(read_ledger(run)) == len(ledger_lines(0, {}))
    run.append_lines("events.jsonl", [{"event": "attempt-ended", "attempt": 1}])
    with pytest.raises(DamagedFile, match="attempt 1 has ended, and not all its lines are there"):
        read_ledger(run)


@given(st.floats(0, 1))
def test_an_attempt_that_is_written_again_is_counted_once(share: float) -> None:
    """A launcher that was killed while it wrote an attempt, at any byte or right after the last, writes it again."""
    run = open_storage("memory://ledger-again")
    first, second = (ledger_lines(number, {"pending": 4, "loading": 1, "useful": 2}) for number in (0, 1))
    run.delete("ledger.jsonl")
    append_ledger(run, first)
    before = run.entry("ledger.jsonl").size
    append_ledger(run, second)
    written = run.read("ledger.jsonl")
    run.write("ledger.jsonl", written[: before + round(share * (len(written) - before))])
    append_ledger(run, second)
    assert read_ledger(run) == tuple(first + second)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (with_checksum({"attempt": 0, "state": "useful", "seconds": -1}), "seconds: "),
        (with_checksum({"attempt": 0, "state": "useful"}), "seconds: "),
        (with_checksum({"attempt": 0, "state": "useful", "seconds": 1, "pool": "moon"}), "pool: "),
        ({"attempt": 0, "state": "useful", "seconds": 1.0}, "no checksum, as in earlier versions"),
        ([1], "a JSON list"),
    ],
)
def test_a_whole_line_that_is_wrong_is_named_with_its_number(line: Any, problem: str) -> None:
    run = open_storage("memory://ledger-wrong")
    run.write_lines("ledger.jsonl", [with_checksum({"attempt": 0, "state": "idle", "seconds": 1}), line])
    with pytest.raises(
        DamagedFile, match=rf"ledger\.jsonl in memory://ledger-wrong .*line 2: .*{problem}.*delete that"
    ):
        read_ledger(run)


def test_every_flipped_bit_of_a_ledger_is_an_error_but_those_of_an_end_that_a_kill_could_leave() -> None:
    """One flipped bit once dropped a line, and the run seemed to have taken 76 seconds instead of 135."""
    run = open_storage("memory://ledger-flipped")
    lines = ledger_lines(0, {"loading": 59.3, "useful": 70.25}, 2, "spot", "g5.xlarge", 1.5)
    append_ledger(run, lines)
    whole = run.read("ledger.jsonl")
    for position in range(len(whole)):
        run.write(
            "ledger.jsonl", whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]
        )
        with pytest.raises(DamagedFile, match=rf"line {whole[:position].count(10) + 1}: "):
            read_ledger(run)
    run.write("ledger.jsonl", whole)
    assert read_ledger(run) == tuple(lines)


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_a_number_that_no_sum_survives_gets_neither_in_nor_out(number: float) -> None:
    for values in ({"seconds": {"useful": number}}, {"seconds": {"useful": 1.0}, "usd_per_hour": number}):
        with pytest.raises((ValueError, OverflowError)):
            ledger_lines(0, **values)
    with pytest.raises(ValueError, match="not JSON"):
        with_checksum({"attempt": 0, "state": "useful", "seconds": number})


def test_the_price_is_of_one_node_and_waiting_is_free() -> None:
    lines = ledger_lines(3, {"pending": 7200, "loading": 900, "useful": 2700}, 4, "spot", "g5.xlarge", 1.5)
    assert spent(lines) == 4 * 1.5
    assert by_state(lines)["pending"] == (7200, 28800, 0)
    assert by_state(lines)["useful"] == (2700, 10800, 4.5)
    assert goodput(lines) == 0.25


def test_the_bill_is_split_by_pool_and_by_attempt() -> None:
    spot = ledger_lines(0, {"useful": 3600}, 2, "spot", "p5.48xlarge", 40.0)
    demand = ledger_lines(1, {"useful": 1800}, 2, "on-demand", "p5.48xlarge", 98.0)
    assert by_pool(spot + demand) == {"spot": (3600, 7200, 80), "on-demand": (1800, 3600, 98)}
    assert [(number, spent(lines)) for number, lines in by_attempt(demand + spot).items()] == [(0, 80), (1, 98)]


def test_states_have_their_order_and_one_that_a_later_version_knows_comes_last() -> None:
    lines = [LedgerLine(attempt=0, state=state, seconds=1.0) for state in ("defrosting", "idle", "pending")]
    assert list(by_state(lines)) == [*STATES, "defrosting"]
    assert by_state(lines)["defrosting"].seconds == 1.0


spans = st.dictionaries(st.sampled_from(STATES), st.floats(0, 1e6), max_size=len(STATES))
attempt = st.builds(
    ledger_lines,
    st.integers(0, 5),
    spans,
    st.integers(0, 64),
    st.sampled_from(["spot", "on-demand", "local"]),
    st.none(),
    st.floats(0, 100),
)


@given(spans)
def test_rounded_lines_still_add_up_to_the_wall_clock(seconds: dict[str, float]) -> None:
    lines = ledger_lines(0, seconds)
    assert total(lines).seconds == pytest.approx(sum(seconds.values()), abs=0.001)
    assert all(line.seconds == round(line.seconds, 3) for line in lines)


@given(st.lists(attempt, max_size=6).map(lambda parts: [line for part in parts for line in part]), st.integers(0, 60))
def test_the_bill_is_additive(lines: list[LedgerLine], cut: int) -> None:
    assert spent(lines) == pytest.approx(spent(lines[:cut]) + spent(lines[cut:]))
    assert spent(lines) == pytest.approx(sum(part.usd for part in by_state(lines).values()))
    assert spent(lines) == pytest.approx(sum(part.usd for part in by_pool(lines).values()))
    assert total(lines).node_seconds == pytest.approx(
        sum(total(part).node_seconds for part in by_attempt(lines).values())
    )
