"""What training costs: held against published runs, against a simulation, and against what cannot be otherwise."""

from __future__ import annotations

import io
import math
import random
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.dataset.format import Sample, pack
from components.model.gpu_peaks import peak_flops
from components.model.unet_shape import SD2, TRAINING_OVER_FORWARD
from pipeline.cost.forecast import (
    DAY,
    HOUR,
    Budget,
    Forecast,
    Interruptions,
    daly,
    forecast,
    images_per_second,
    kept_checkpoints,
    running_seconds,
    sample_bytes,
    seconds_between_interruptions,
    young,
)
from pipeline.cost.history import PUBLISHED_SPEEDS, published_speed

NEVER = Interruptions(between=math.inf, saved_share=0.0, stall=0.0, save=0.0, wait=0.0, start=0.0)
SPOT = Interruptions(between=4 * HOUR, saved_share=0.0, stall=5.0, save=20.0, wait=600.0, start=300.0)

# Stable Diffusion 2 base from scratch: images trained on at 256 and at 512 pixels (github.com/mosaicml/diffusion).
IMAGES = {256: 1_126_400_000, 512: 1_740_800_000}


def two_phases(gpus: int, speeds: dict[int, float]) -> tuple[float, float]:
    """Return days and US dollars at $2 per GPU-hour."""
    phases = [forecast(IMAGES[side] / speeds[side], IMAGES[side], 1e9, NEVER, gpus, 2.0) for side in IMAGES]
    return sum(phase.hours for phase in phases) / 24, sum(phase.usd for phase in phases)


@pytest.mark.parametrize(
    ("gpus", "days", "usd"),
    [(8, 81.33, 31_230), (16, 40.42, 31_043), (32, 20.06, 30_805), (64, 10.14, 31_146), (128, 5.51, 33_874)],
)
def test_published_runs_of_stable_diffusion_2_from_scratch(gpus: int, days: float, usd: float) -> None:
    speeds = {one.resolution: one.images_per_second for one in PUBLISHED_SPEEDS if one.gpus == gpus}
    told_days, told_usd = two_phases(gpus, speeds)
    assert told_days == pytest.approx(days, abs=0.006)
    assert told_usd == pytest.approx(usd, abs=1)


@pytest.mark.parametrize("one", PUBLISHED_SPEEDS)
def test_published_speeds_are_a_plausible_share_of_the_peak(one: object) -> None:
    assert isinstance(one, type(PUBLISHED_SPEEDS[0]))
    peak = peak_flops(f"NVIDIA {one.gpu}", "fp16", tf32=False)
    assert peak is not None
    per_image = TRAINING_OVER_FORWARD * SD2.forward_flops(one.resolution // 8, one.resolution // 8, tokens=77)
    mfu = one.images_per_second * per_image / (peak * one.gpus)
    assert 0.15 < mfu < 0.30
    assert images_per_second(per_image, peak, one.gpus, mfu) == pytest.approx(one.images_per_second)


def test_without_a_measurement_the_same_run_is_told_from_its_arithmetic() -> None:
    """At the assumed share of the peak, 8 A100 take about as long as they were seen to take."""
    speeds = {
        side: images_per_second(TRAINING_OVER_FORWARD * SD2.forward_flops(side // 8, side // 8, 77), 312e12, 8, 0.25)
        for side in IMAGES
    }
    days, usd = two_phases(8, speeds)
    assert days == pytest.approx(81.33, rel=0.15)
    assert usd == pytest.approx(31_230, rel=0.15)


def test_the_nearest_published_speed() -> None:
    one = published_speed(SD2, 512, "NVIDIA A100-SXM4-40GB", 48)
    assert one is not None
    assert one.gpus == 32
    assert one.on(48) == pytest.approx(1195 * 1.5)
    assert published_speed(SD2, 768, "NVIDIA A100-SXM4-40GB", 8) is None
    assert published_speed(SD2, 512, "NVIDIA H100 80GB HBM3", 8) is None


def expected(interval: float, stall: float, between: float) -> float:
    interruptions = replace(SPOT, stall=stall, between=between)
    return running_seconds(1e6, interval, interruptions)


@pytest.mark.parametrize("between", [600.0, HOUR, DAY])
@pytest.mark.parametrize("stall", [1.0, 10.0, 60.0])
def test_daly_is_the_optimum_of_the_expected_time(stall: float, between: float) -> None:
    grid = [10 ** (exponent / 200) for exponent in range(1200)]
    best = min(grid, key=lambda interval: expected(interval, stall, between))
    assert daly(stall, between) == pytest.approx(best, rel=0.03)
    assert expected(daly(stall, between), stall, between) <= expected(best, stall, between) * 1.0001
    # Young's is the first order: good where stalls are short beside the time between losses.
    assert expected(young(stall, between), stall, between) <= expected(best, stall, between) * 1.02


# Daly's equation 37 worked by hand, with the time between losses as the unit: for 0.5 it is √1·(1 + ½/3 + ¼/9) − ½.
# Without the third term the last would be 0.732051.
@pytest.mark.parametrize(("stall", "interval"), [(0.02, 0.186889), (0.5, 0.694444), (1.5, 0.876388)])
def test_daly_has_three_terms(stall: float, interval: float) -> None:
    assert daly(stall, 1.0) == pytest.approx(interval, abs=1e-6)
    assert daly(60 * stall, 60.0) == pytest.approx(60 * interval, abs=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0, 1.5])
def test_daly_is_near_the_optimum_where_a_stall_is_as_long_as_the_time_between_losses(share: float) -> None:
    """The third term is what is left of the error after two: it is 3 to 16 % of the interval here."""
    between, stall = 600.0, 600.0 * share
    best = min(np.linspace(0.2, 1.2, 10_001) * between, key=lambda interval: expected(interval, stall, between))
    assert daly(stall, between) == pytest.approx(best, rel=0.04)


def test_intervals_at_their_limits() -> None:
    assert young(2.0, 3600.0) == 120.0
    assert daly(1e-9, HOUR) == pytest.approx(young(1e-9, HOUR), rel=1e-3)
    assert daly(100.0, 40.0) == daly(80.0, 40.0) == 40.0
    assert daly(10.0, math.inf) == math.inf


def simulate(work: float, interval: float, interruptions: Interruptions, seed: int) -> float:
    """Return the seconds for which machines are held in one life of a gang, event by event."""
    dice = random.Random(seed)
    clock, done = interruptions.start, 0.0
    strike = dice.expovariate(1 / interruptions.between)
    while done < work:
        part = min(interval, work - done)
        if clock + part + interruptions.stall <= strike:
            clock, done = clock + part + interruptions.stall, done + part
            continue
        noticed = dice.random() < interruptions.saved_share
        done += min(max(strike - clock, 0.0), part) if noticed else 0.0
        clock = max(strike, clock) + interruptions.start + (interruptions.save if noticed else 0.0)
        strike = max(strike, clock - interruptions.start) + dice.expovariate(1 / interruptions.between)
        while strike < clock:  # a start that is interrupted begins again
            clock, strike = strike + interruptions.start, strike + dice.expovariate(1 / interruptions.between)
    return clock


@pytest.mark.parametrize(("saved", "save"), [(0.0, 20.0), (0.5, 20.0), (0.9, 20.0), (0.9, 300.0)])
def test_a_simulation_takes_as_long_as_expected(saved: float, save: float) -> None:
    interruptions = replace(SPOT, between=HOUR, saved_share=saved, start=120.0, save=save)
    work, interval = 40 * HOUR, daly(interruptions.stall, interruptions.between)
    lives = [simulate(work, interval, interruptions, seed) for seed in range(300)]
    assert sum(lives) / len(lives) == pytest.approx(running_seconds(work, interval, interruptions), rel=0.02)


def test_what_interruptions_cost() -> None:
    calm = forecast(10 * HOUR, 1e6, HOUR, NEVER, 4, 2.0)
    assert calm == Forecast(10.0, 10.0, 1.0, 0.0, 80.0, 8.0, 0.08)

    spot = forecast(10 * HOUR, 1e6, daly(SPOT.stall, SPOT.between), SPOT, 4, 2.0)
    assert spot.interruptions == pytest.approx(spot.paid_hours / 4)
    assert spot.hours == pytest.approx(spot.paid_hours + (1 + spot.interruptions) * 600 / HOUR)
    assert spot.goodput == pytest.approx(10 / spot.hours)
    assert spot.usd == pytest.approx(spot.paid_hours * 8)

    warned = forecast(10 * HOUR, 1e6, daly(SPOT.stall, SPOT.between), replace(SPOT, saved_share=0.9), 4, 2.0)
    assert calm.usd < warned.usd < spot.usd


def test_checkpoints_that_are_further_apart_than_the_work_is_long_are_one_at_its_end() -> None:
    often, once = (forecast(2 * HOUR, 1e6, interval, SPOT, 4, 2.0) for interval in (2 * HOUR, 9 * HOUR))
    assert once == often


def test_a_gang_that_never_gets_anywhere_is_said_to() -> None:
    hopeless = forecast(10 * HOUR, 1e6, 5 * HOUR, replace(SPOT, between=10.0), 4, 2.0)
    assert (hopeless.usd, hopeless.goodput) == (math.inf, 0.0)
    assert running_seconds(1.0, 1.0, replace(SPOT, between=100.0, saved_share=1.0)) == math.inf


times = st.floats(1, 1e5)


@given(times, times, st.floats(0, 0.99), st.floats(1e4, 1e7))
def test_more_interruptions_never_help(work: float, interval: float, saved: float, between: float) -> None:
    interruptions = replace(SPOT, saved_share=saved, between=between)
    twice_as_many = replace(interruptions, between=between / 2)
    half_the_losses = replace(interruptions, saved_share=1 - (1 - saved) / 2, save=0.0)
    seconds = running_seconds(work, interval, interruptions)
    assert seconds >= work + interruptions.start
    assert seconds <= running_seconds(work, interval, twice_as_many) * (1 + 1e-9)
    assert seconds >= running_seconds(work, interval, half_the_losses) * 0.999


def test_a_gang_is_interrupted_as_often_as_all_of_its_nodes() -> None:
    assert seconds_between_interruptions(1.0, 8) == DAY / 8
    assert seconds_between_interruptions(0.0, 8) == math.inf


@given(st.floats(1, 1e4), st.floats(0, 1e3), st.floats(1, 60), st.floats(0, 600), st.lists(st.booleans(), max_size=300))
def test_a_budget_is_exceeded_by_no_more_than_one_poll(
    usd: float, rate: float, poll: float, save: float, late: list[bool]
) -> None:
    """Not at all while polls come when they should; by one poll's price where they come up to one poll late."""
    budget = Budget(usd, poll, save)
    if budget.must_stop(0.0, rate):
        return
    spent = 0.0
    for is_late in late:
        spent += rate * poll * (2 if is_late else 1) / HOUR
        if budget.must_stop(spent, rate):
            over = spent + rate * save / HOUR - usd
            assert over <= (rate * poll / HOUR if is_late else 0) + 1e-6
            return
    assert spent <= usd


def test_a_budget_keeps_back_the_next_poll_and_the_save() -> None:
    budget = Budget(usd=100.0, poll_seconds=30.0, save_seconds=60.0)
    assert not budget.must_stop(98.4, 60.0)
    assert budget.must_stop(98.5, 60.0)
    assert not budget.must_stop(99.99, 0.0), "what costs nothing may go on"


@pytest.mark.parametrize(
    ("channels", "side", "tokens", "context"), [(4, 64, 77, 768), (16, 4, 8, 64), (4, 128, 77, 2048)]
)
def test_a_sample_takes_as_many_bytes_as_its_shard_says(channels: int, side: int, tokens: int, context: int) -> None:
    moments = np.zeros((2 * channels, side, side), np.float16)
    text = np.zeros((tokens, context), np.float16)
    meta = {"caption": "x" * 500, "caption_digest": "0" * 16}
    samples = [Sample(f"{index:064x}", moments, text, meta) for index in range(3)]
    tar, _ = pack(samples)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        end = max(member.offset_data + math.ceil(member.size / 512) * 512 for member in opened.getmembers())
    assert end == 3 * sample_bytes(channels, side, side, tokens, context)


def test_how_many_checkpoints_there_are_at_once() -> None:
    assert kept_checkpoints(steps=1000, every=100, keep=2, keep_every=None) == 3
    assert kept_checkpoints(steps=1000, every=100, keep=2, keep_every=500) == 5
    assert kept_checkpoints(steps=100, every=100, keep=2, keep_every=None) == 1
    assert kept_checkpoints(steps=101, every=100, keep=2, keep_every=None) == 2, "the last step is saved, too"
