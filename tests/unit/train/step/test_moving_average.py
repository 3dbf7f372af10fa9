"""The moving average: its decay rises, and it is known how much of the base is left."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.train.step.moving_average import base_share, decay


def test_the_decay_rises_to_its_limit() -> None:
    assert [decay(n, 0.9999) for n in (0, 1, 10, 90)] == [0.1, 2 / 11, 11 / 20, 0.91]
    assert decay(89_980, 0.9999) < 0.9999 == decay(90_000, 0.9999) == decay(10**9, 0.9999)
    assert decay(0, 0.05) == 0.05


def test_a_short_training_publishes_what_it_learnt() -> None:
    assert base_share(0, 0.9999) == 1.0
    assert base_share(10, 0.9999) < 1.1e-5
    assert base_share(1000, 0.9999) < 1e-20, "a fixed decay would leave 90 %"


@given(st.integers(0, 3000), st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.98, 0.999, 0.9999]) | st.floats(0, 0.9999))
def test_the_share_is_the_product_of_the_decays(updates: int, limit: float) -> None:
    expected = prod(decay(n, limit) for n in range(updates))
    assert base_share(updates, limit) == pytest.approx(expected, rel=1e-9, abs=1e-250)
