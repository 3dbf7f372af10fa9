"""The loss scale as a function of which steps overflowed."""

from __future__ import annotations

from components.train.step.loss_scale import LossScale


def after(scale: LossScale, *overflows: bool) -> LossScale:
    for overflowed in overflows:
        scale = scale.after(overflowed)
    return scale


def test_it_begins_at_65536_as_torch_s_and_deepspeed_s_scalers_do() -> None:
    assert LossScale() == LossScale(65_536.0, 0)


def test_it_halves_at_each_overflow_but_never_below_one() -> None:
    assert after(LossScale(8.0), True, False, True).value == 2.0
    assert after(LossScale(2.0), *[True] * 5) == LossScale(1.0)


def test_it_doubles_after_a_thousand_steps_in_a_row_without_overflow() -> None:
    assert after(LossScale(4.0), *[False] * 999) == LossScale(4.0, 999)
    assert after(LossScale(4.0), *[False] * 1000) == LossScale(8.0)
    assert after(LossScale(4.0), *[False] * 999, True, *[False] * 999).value == 2.0
