"""The drawings of the report: axes, curves, SVG, tiles."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.html.axes import Axis, linear_ticks, log_ticks, tick_labels, time_ticks
from components.html.svg import element
from components.report.attempts import Attempt
from components.report.charts import ledger_bar, loss_chart, small_chart, timeline
from components.report.contact_sheets import tiles
from components.report.curves import Point, smooth, spread, thin

values = st.floats(-1e30, 1e30)


def texts(svg: str) -> list[str]:
    return [str(text.text) for text in ElementTree.fromstring(svg).iter("text")]


@given(values, values, st.integers(1, 12))
def test_ticks_are_round_few_and_on_the_axis(low: float, high: float, about: int) -> None:
    low, high = min(low, high), max(low, high)
    ticks = linear_ticks(low, high, about)

    assert 1 <= len(ticks) <= 2.5 * about + 2 or len(ticks) == 0
    slack = (high - low) * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert len(tick_labels(ticks)) == len(ticks)


def test_ticks_of_common_axes() -> None:
    assert linear_ticks(0, 300, 3) == [0, 100, 200, 300]
    assert tick_labels(linear_ticks(0, 1.03, 5)) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [label for _, label in Axis(0.03, 3.0, 0, 1, log=True).labelled(6)] == [
        "0.05",
        "0.1",
        "0.2",
        "0.5",
        "1",
        "2",
    ]
    assert log_ticks(0.5, 2000, 4) == pytest.approx([1, 10, 100, 1000])
    assert time_ticks(75, 5) == [0, 15, 30, 45, 60, 75]
    assert time_ticks(86_400 * 10, 5) == [86_400 * day for day in (0, 2, 4, 6, 8, 10)]


def test_an_axis_places_values_and_keeps_them_inside() -> None:
    assert Axis(0, 10, 100, 200).at(5) == 150
    assert Axis(1, 100, 100, 0, log=True).at(10) == pytest.approx(50)
    assert Axis(0, 10, 100, 200).at(1e9) == 200
    assert Axis(1, 100, 100, 0, log=True).at(-5) == 100


def test_smoothing_keeps_a_line_in_place_and_halves_at_the_half_life() -> None:
    line = [Point(index, 2.0 * index) for index in range(101)]
    assert smooth(line, 5)[50].value == pytest.approx(100), "no lag"
    assert smooth(line, 0) == line
    spike = [Point(index, float(index == 50)) for index in range(101)]
    smoothed = smooth(spike, 4)
    assert smoothed[54].value / smoothed[50].value == pytest.approx(0.5, rel=1e-3)


@given(st.lists(values, min_size=1, max_size=400), st.integers(2, 50))
def test_thinning_keeps_order_and_extremes(drawn: list[float], limit: int) -> None:
    points = [Point(index, value) for index, value in enumerate(drawn)]
    thinned = thin(points, limit)

    assert len(thinned) <= max(limit, 2)
    assert all(before.step < after.step for before, after in pairwise(thinned))
    assert {min(drawn), max(drawn)} <= {point.value for point in thinned}


def test_spreading_keeps_the_ends() -> None:
    assert spread([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert spread([1, 2, 3], 1) == [3]
    assert spread([1, 2], 8) == [1, 2]


def test_svg_escapes_what_it_is_given() -> None:
    assert element("text", "<b>&", class_='"x', stroke_width=1.26) == (
        '<text class="&#34;x" stroke-width="1.3">&lt;b&gt;&amp;</text>'
    )


@given(st.lists(values, min_size=1, max_size=60), st.sampled_from([340, 660, 1060]))
def test_any_loss_can_be_drawn(losses: list[float], width: int) -> None:
    raw = [Point(7 * index + 1, loss) for index, loss in enumerate(losses)]
    svg = loss_chart(raw, smooth(raw, 3), raw[::-3][::-1], {1: "preempted", 10**6: "failed"}, width)

    assert "nan" not in svg
    assert "inf" not in svg
    for circle in ElementTree.fromstring(svg).iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
    assert "nan" not in small_chart(raw, raw, "x")


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis() -> None:
    raw = [Point(step, 3 * math.exp(-step / 100)) for step in range(1, 501)]
    labels = texts(loss_chart(raw, raw, [], {}, 1060))

    assert {"0.1", "1"} <= set(labels)
    assert "0" not in labels[:4]


def test_the_loss_on_held_out_images_is_a_curve_of_its_own_on_the_same_axes() -> None:
    raw = [Point(step, 1.0 - step / 20) for step in range(1, 11)]
    held_out = [Point(0, 1.6), Point(5, 0.75), Point(10, 0.5)]
    svg = ElementTree.fromstring(loss_chart(raw, raw, held_out, {}, 1060))

    (curve,) = [path.attrib["d"] for path in svg.iter("path") if path.attrib["class"] == "held-out line"]
    (smooth_,) = [path.attrib["d"] for path in svg.iter("path") if path.attrib["class"] == "smooth"]
    places, beside = ([place.split() for place in d.removeprefix("M").split("L")] for d in (curve, smooth_))
    assert places[1:] == [beside[4], beside[9]], "equal losses after equal steps lie in the same place"
    assert float(places[0][1]) < float(beside[0][1]), "a higher loss is drawn higher, inside the drawing"
    assert len([dot for dot in svg.iter("circle") if dot.attrib["class"] == "held-out"]) == 3
    assert "1.6 at first and 0.5 at the end on held-out images" in svg.attrib["aria-label"]
    (value,) = [text.text for text in svg.iter("text") if text.attrib.get("class") == "value"]
    assert value == "0.5", "one loss is the last, and it is that of what is published"


def test_the_curve_runs_from_its_first_to_its_last_value() -> None:
    raw = [Point(step, 1.0 - step / 10) for step in range(11)]
    svg = ElementTree.fromstring(loss_chart(raw, raw, [], {5: "preempted"}, 1060))

    (curve,) = [path.attrib["d"] for path in svg.iter("path") if path.attrib["class"] == "smooth"]
    places = [tuple(map(float, place.split())) for place in curve.removeprefix("M").split("L")]
    assert len(places) == 11
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted(y for _, y in places), "down on the page is a lower loss"
    assert "preempted at 5" in texts(ElementTree.tostring(svg, encoding="unicode"))
    (mark,) = [line for line in svg.iter("line") if line.attrib["class"] == "mark"]
    assert float(mark.attrib["x1"]) == pytest.approx(places[5][0], abs=0.1)


def test_the_ledger_bar_shares_its_length_by_time() -> None:
    svg = ElementTree.fromstring(ledger_bar({"useful": 30.0, "lost": 10.0, "idle": 0.0}))

    starts = [float(rect.attrib["x"]) for rect in svg.iter("rect")]
    assert starts == [0, 750, 1000]
    assert svg.attrib["aria-label"].endswith("useful 30\xa0s, lost 10\xa0s, idle 0\xa0s")
    ElementTree.fromstring(ledger_bar({"useful": 0.0}))


@pytest.mark.parametrize("width", [340, 660, 1060])
def test_the_timeline_shows_each_attempt_where_it_ran(width: int) -> None:
    tries = [
        Attempt(1, 2, 100.0, 140.0, 75, 0, 175, notices=[(139.0, 1)], checkpoints=[(110.0, 50), (139.9, 175)]),
        Attempt(2, 2, 150.0, 200.0, 0, 175, 300),
        Attempt(3, 2, 200.0, 200.0),
    ]
    svg = ElementTree.fromstring(timeline(tries, width))

    bars = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in svg.iter("rect")]
    assert bars[0][1] / bars[1][1] == pytest.approx(40 / 50, rel=0.01)
    assert bars[1][0] > bars[0][0] + bars[0][1]
    assert bars[2][1] == 2, "even an attempt that ended at once is seen"
    assert len([line for line in svg.iter("line") if line.attrib["class"] == "checkpoint"]) == 2
    assert len([path for path in svg.iter("path") if path.attrib["class"] == "notice"]) == 1
    assert "Attempt 1: steps 0 to 175, preempted" in texts(ElementTree.tostring(svg, encoding="unicode"))


def sheet(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_tiles_are_cut_row_by_row() -> None:
    found = tiles(sheet(96, 64), (32, 32), limit=5, longest=256)

    assert [(tile.width, tile.height) for tile in found] == [(32, 32)] * 5
    assert found[0].uri.startswith("data:image/png;base64,")
    assert found[0].uri == found[1].uri != found[3].uri, "a gradient from top to bottom"


def test_large_tiles_shrink_and_keep_their_shape() -> None:
    (tile,) = tiles(sheet(512, 256), (256, 512), limit=9, longest=128)

    assert (tile.width, tile.height) == (128, 64)
    assert tile.uri.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (sheet(96, 64), (30, 32), "96×64 pixels, expected rows of images of 32×30"),
        (sheet(96, 64), (0, 0), "96×64 pixels, expected rows of images of 0×0"),
        (b"GIF89a", (32, 32), "not a PNG"),
        (sheet(96, 64)[:60], (32, 32), "not a PNG"),
    ],
)
def test_a_sheet_that_does_not_fit_is_refused(data: bytes, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiles(data, size, 10, 256)
