"""The drawings of the report: points and spans in, SVG out. Pure; colours and fonts come from ``page.css``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from components.html.axes import Axis, time_ticks
from components.html.formatting import duration, number, plural
from components.html.svg import drawing, element
from components.report.attempts import Attempt
from components.report.curves import Point, thin

POINTS = 500  # more cannot be distinguished at the width of a page
LOG_FROM = 12.0  # highest over lowest smoothed loss from which a logarithmic axis shows more


@dataclass(frozen=True)
class PlotArea:
    """The part of a drawing between its axes."""

    x: Axis
    y: Axis

    def position(self, point: Point) -> str:
        """Return a point's position as ``x y``."""
        return f"{self.x.at(point.step):.1f} {self.y.at(point.value):.1f}"


def loss_chart(
    raw: Sequence[Point],
    smoothed: Sequence[Point],
    held_out: Sequence[Point],
    marks: Mapping[int, str],
    width: int,
) -> Markup:
    """Draw the loss by optimizer step: each value faint, the smoothed ones bold, preemptions and failures as marks.

    Args:
        raw: One point per step, not empty.
        smoothed: The same, smoothed.
        held_out: The loss on held-out samples, if it was measured.
        marks: What happened after which step, such as ``{175: "preempted"}``.
        width: Of the drawing.
    """
    height = 340 if width > 500 else 260
    area = _plot_area(raw, [*smoothed, *held_out], width, height)
    # One loss is written at its curve's end: that of the published weights, if it was measured.
    last = (held_out or smoothed)[-1]
    kind, end = (" on held-out images", "end held-out") if held_out else (", smoothed", "end")
    return drawing(
        width,
        height,
        f"Loss by optimizer step, {number((held_out or smoothed)[0].value)} at first and {number(last.value)} at the "
        f"end{kind}",
        _grid(area, about=max(3, width // 110)),
        *(_mark(area, step, what if 160 * len(marks) <= width else "") for step, what in marks.items()),
        element("path", d=_path(area, thin(raw, POINTS)), class_="raw"),
        element("path", d=_path(area, thin(smoothed, POINTS)), class_="smooth"),
        *_dotted(area, thin(held_out, POINTS // 5)),
        element("circle", cx=area.x.at(last.step), cy=area.y.at(last.value), r=4, class_=end),
        element(
            "text",
            number(last.value),
            x=area.x.at(last.step) - 8,
            y=area.y.at(last.value) - 12,
            text_anchor="end",
            class_="value",
        ),
    )


def _dotted(area: PlotArea, points: Sequence[Point]) -> list[Markup]:
    if not points:
        return []
    dots = [
        element("circle", cx=area.x.at(point.step), cy=area.y.at(point.value), r=2.4, class_="held-out")
        for point in points
    ]
    return [element("path", d=_path(area, points), class_="held-out line"), *dots]


def small_chart(points: Sequence[Point], smoothed: Sequence[Point], label: str) -> Markup:
    """Draw one quantity by optimizer step, small; ``points`` is not empty, and ``smoothed`` is drawn above it."""
    values = [point.value for point in points]
    low, high = min(*values, 0.0), max(*values, 0.0)
    area = PlotArea(_steps(points, 40, 332), Axis(low, high if high > low else low + 1.0, 118, 8))
    return drawing(
        340,
        140,
        label,
        _grid(area, about=3),
        element("path", d=_path(area, thin(points, 300)), class_="raw"),
        element("path", d=_path(area, thin(smoothed, 300)), class_="thin"),
    )


def ledger_bar(ledger: Mapping[str, float]) -> Markup:
    """Draw the training's wall time as one bar, a stretch per state."""
    whole = sum(ledger.values()) or 1.0
    parts, start = [], 0.0
    for state, seconds in ledger.items():
        share = 1000 * seconds / whole
        title = element("title", f"{state}: {duration(seconds)}")
        # A small gap between two states separates them for people who do not see the colours.
        parts.append(
            element("rect", title, x=start, y=0, width=max(share - 1.5, 0.0), height=36, class_=f"state {state}")
        )
        start += share
    label = "Training's wall time: " + ", ".join(f"{state} {duration(seconds)}" for state, seconds in ledger.items())
    return element("svg", *parts, viewBox="0 0 1000 36", preserveAspectRatio="none", role="img", aria_label=label)


def timeline(attempts: Sequence[Attempt], width: int) -> Markup:
    """Draw when each attempt ran, with its checkpoints and spot notices; ``attempts`` is not empty."""
    begin, end = attempts[0].started, max(attempt.ended for attempt in attempts)
    row, bottom = 52, 28
    height = row * len(attempts) + bottom
    time = Axis(0.0, max(end - begin, 1.0), 6, width - 6)
    ticks = time_ticks(time.high, about=max(2, width // 130))
    return drawing(
        width,
        height,
        f"{plural(len(attempts), 'training attempt')} over {duration(end - begin)}; the table below says the same",
        *(_time_tick(time.at(tick), duration(tick), width, height) for tick in ticks),
        *(_attempt(attempt, begin, time, index * row) for index, attempt in enumerate(attempts)),
    )


def _attempt(attempt: Attempt, begin: float, time: Axis, top: float) -> Markup:
    left, right = time.at(attempt.started - begin), time.at(attempt.ended - begin)
    last = "" if attempt.last_step is None else f"steps {attempt.first_step:,} to {attempt.last_step:,}, "
    label = f"Attempt {attempt.number}: {last}{attempt.outcome}"
    x, anchor = _beside(label, left, right, time)
    kind = "bar lost" if attempt.exit_code not in (0, None) and not attempt.preempted else "bar"
    return element(
        "g",
        element("text", label, x=x, y=top + 16, text_anchor=anchor),
        element("rect", x=left, y=top + 23, width=max(right - left, 2.0), height=20, rx=3, class_=kind),
        *(
            element("line", x1=x, x2=x, y1=top + 23, y2=top + 43, class_="checkpoint")
            for x in sorted({round(time.at(at - begin)) for at, _ in attempt.checkpoints})
        ),
        *(_notice(time.at(at - begin), top + 33) for at, _ in attempt.notices),
    )


def _beside(label: str, left: float, right: float, time: Axis) -> tuple[float, str]:
    """Return the position and anchor of the label above a bar: aligned with the bar if the drawing has room."""
    needed = 6.2 * len(label)  # a letter's mean width at 12 px, rounded up
    if left + needed <= time.end:
        return left, "start"
    return (right, "end") if right - needed >= time.start else (time.start, "start")


def _notice(x: float, y: float) -> Markup:
    return element("path", element("title", "spot notice"), d=f"M{x:.1f} {y - 7:.1f}l7 12h-14z", class_="notice")


def _time_tick(x: float, label: str, width: int, height: int) -> Markup:
    anchor = "start" if x < 30 else "end" if x > width - 30 else "middle"
    return element("line", x1=x, x2=x, y1=0, y2=height - 22, class_="grid") + element(
        "text", label, x=x, y=height - 6, text_anchor=anchor, class_="tick"
    )


def _plot_area(raw: Sequence[Point], smoothed: Sequence[Point], width: int, height: int) -> PlotArea:
    values = sorted(point.value for point in raw)
    curve = [point.value for point in smoothed]
    # A few outliers must not flatten the curve: they are cut off at the edge.
    low, high = min(values[len(values) // 200], *curve), max(values[-1 - len(values) // 100], *curve)
    log = min(curve) > 0 and low > 0 and max(curve) / min(curve) >= LOG_FROM
    if not log:
        low, high = min(low, 0.0), high if high > min(low, 0.0) else min(low, 0.0) + 1.0
    return PlotArea(_steps(raw, 46, width - 12), Axis(low, high, height - 26, 22, log))


def _steps(points: Sequence[Point], start: float, end: float) -> Axis:
    return Axis(points[0].step, max(points[-1].step, points[0].step + 1), start, end)


def _grid(area: PlotArea, about: int) -> Markup:
    x, y = area.x, area.y
    parts = []
    for tick, label in y.labelled(min(about, 5)):
        at = y.at(tick)
        parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(element("text", label, x=x.start - 8, y=at + 4, text_anchor="end", class_="tick"))
    for tick, label in x.labelled(about):
        if tick != int(tick):  # there are no half steps
            continue
        anchor = "end" if x.at(tick) > x.end - 12 else "middle"
        parts.append(element("text", label, x=x.at(tick), y=y.start + 18, text_anchor=anchor, class_="tick"))
    return Markup("").join(parts)


def _mark(area: PlotArea, step: int, what: str) -> Markup:
    x = area.x.at(step)
    line = element("line", x1=x, x2=x, y1=area.y.end - 8, y2=area.y.start, class_="mark")
    if not what:
        return line
    late = x > (area.x.start + area.x.end) * 0.6
    position, anchor = (x - 7, "end") if late else (x + 7, "start")
    return line + element("text", f"{what} at {step:,}", x=position, y=area.y.end, text_anchor=anchor, class_="mark")


def _path(area: PlotArea, points: Sequence[Point]) -> str:
    return "M" + "L".join(area.position(point) for point in points)
