"""Histograms as SVG; colours and fonts come from ``page.css``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from components.clean.tally import WIDEST
from components.html.axes import Axis
from components.html.formatting import count
from components.html.svg import drawing, element

WIDTH, HEIGHT = 340, 170
_RATIOS = {-WIDEST: "1:4", -WIDEST // 2: "1:2", 0: "1:1", WIDEST // 2: "2:1", WIDEST: "4:1"}


def histogram(columns: Sequence[Sequence[object]], edges: Sequence[int], label: str) -> Markup:
    """Draw the counts of some columns.

    Args:
        columns: The label of each column and its count.
        edges: Where each column but the first begins.
        label: The title, for screen readers.
    """
    ticks = {column + 1: f"{edge:,}" for column, edge in enumerate(edges) if column % 2 == 0 or len(edges) < 8}
    counts = [int(str(times)) for _, times in columns]
    return _drawn([str(name) for name, _ in columns], counts, ticks, 0.0, label)


def aspects(counts: Sequence[int]) -> Markup:
    """Draw how many images there are of each aspect ratio, as ``aspect_column`` numbers them."""
    names = [_RATIOS.get(k, f"about {2 ** (k / 4):.2f}:1") for k in range(-WIDEST, WIDEST + 1)]
    ticks = {k + WIDEST: name for k, name in _RATIOS.items()}
    return _drawn(names, counts, ticks, 0.5, "Images by their aspect ratio, width to height")


def _drawn(names: Sequence[str], counts: Sequence[int], ticks: Mapping[int, str], shift: float, label: str) -> Markup:
    """Draw columns; a tick stands at the beginning of its column, or ``shift`` columns further."""
    x = Axis(0, len(counts), 44, WIDTH - 4)
    y = Axis(0, max(*counts, 1), HEIGHT - 24, 8)
    return drawing(
        WIDTH,
        HEIGHT,
        f"{label}: " + ", ".join(f"{name} {count(times)}" for name, times in zip(names, counts, strict=True) if times),
        *(_line(x, y, tick, text) for tick, text in y.labelled(3) if tick == int(tick)),
        *(_column(x, y, column, names[column], times) for column, times in enumerate(counts) if times),
        *(
            element("text", text, x=x.at(column + shift), y=HEIGHT - 6, text_anchor="middle", class_="tick")
            for column, text in ticks.items()
        ),
    )


def _line(x: Axis, y: Axis, tick: float, text: str) -> Markup:
    at = y.at(tick)
    line = element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid")
    return line + element("text", text, x=x.start - 8, y=at + 4, text_anchor="end", class_="tick")


def _column(x: Axis, y: Axis, column: int, name: str, times: int) -> Markup:
    top = min(y.at(times), y.start - 1.5)  # so that a single image among many is visible
    title = element("title", f"{name}: {count(times)}")
    width = x.at(column + 1) - x.at(column) - 2
    return element("rect", title, x=x.at(column) + 1, y=top, width=width, height=y.start - top, rx=1.5, class_="bar")
