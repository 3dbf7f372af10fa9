"""SVG as text, every value escaped."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

# Text in a drawing shrinks with it, so a page carries three drawings and shows the one that fits.
WIDTHS = {"large": 1060, "medium": 660, "small": 340}


def element(name: str, *inside: str, **attributes: object) -> Markup:
    """Return one element; ``stroke_width`` becomes ``stroke-width`` and ``class_`` becomes ``class``."""
    attribute_text = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _text(value)) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, attribute_text, Markup("").join(inside))


def drawing(width: int, height: int, label: str, *inside: str) -> Markup:
    """Return an ``svg`` that scales with its container; ``label`` says in words what it shows."""
    return element("svg", *inside, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def responsive(draw: Callable[[int], Markup]) -> Markup:
    """Return the drawing at three widths, of which the page's style shows one."""
    return Markup("").join(element("div", draw(width), class_=f"fit {name}") for name, width in WIDTHS.items())


def _text(value: object) -> str | Markup:
    if isinstance(value, float):
        return f"{value:.1f}"
    return value if isinstance(value, Markup) else str(value)
