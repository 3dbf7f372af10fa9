"""Every second of an attempt is in one state, whatever its events say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ledger import STATES, attempt_seconds


def event(time: float, name: str, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": name, **fields}


LIFE = [
    event(101, "loading", ranks=2),
    event(110, "training", step=0),
    event(112, "validation", step=0, seconds=2.0),
    event(123, "checkpoint", step=10, stall_seconds=1.0, trained_seconds=10.0),
    event(126, "samples", step=10, seconds=3.0),
    event(137, "checkpoint", step=20, stall_seconds=1.0, trained_seconds=10.0),
]


def test_a_training_that_came_to_its_end() -> None:
    assert attempt_seconds(LIFE, began=100, ended=140, kept=20, crashed=False) == {
        "loading": 10,
        "useful": 20,
        "saving": 2,
        "validating": 2,
        "sampling": 3,
        "lost": 0,
        "idle": 3,
    }


def test_a_crash_loses_what_no_checkpoint_holds_until_it_is_noticed() -> None:
    seconds = attempt_seconds(LIFE, began=100, ended=145, kept=10, crashed=True)
    assert seconds["useful"] == 10
    assert seconds["lost"] == 10 + 8, "the steps of the checkpoint that was not committed, and all after it"
    assert seconds["idle"] == 0


def test_a_crash_while_loading_loses_nothing() -> None:
    seconds = attempt_seconds([event(101, "loading")], began=100, ended=130, kept=0, crashed=True)
    assert seconds == {**dict.fromkeys(STATES, 0.0), "loading": 30}


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
    told: list[dict[str, Any]], began: float, length: float, kept: int, crashed: bool
) -> None:
    seconds = attempt_seconds(told, began, began + length, kept, crashed)
    assert tuple(seconds) == STATES
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) == pytest.approx(length, abs=1e-3)
